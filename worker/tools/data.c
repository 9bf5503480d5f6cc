/* chorale-data: looks after data directories. `chorale data check DIR` names every problem of one. */
#include "common/err.h"
#include "worker/data/data_check.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =
    "usage: chorale data check DIR [--targets FILE] [--allow-pipes] [--dim N]\n"
    "                    [--num-targets N] [--json]\n"
    "\n"
    "  chorale data check data/train\n"
    "\n"
    "Reads a Kaldi data directory (feats.scp; where present utt2num_frames, utt2spk,\n"
    "cmvn.scp, ali.scp) and tells every problem: its number, what training does about\n"
    "it, and examples with line numbers.\n"
    "\n"
    "  --targets FILE    one integer per frame: scp or ark file, in DIR or a path\n"
    "                    (default: ali.scp if it is there)\n"
    "  --allow-pipes     run commands that stand in scp files (they run in the folder\n"
    "                    of the scp file)\n"
    "  --dim N           the feature dimension that there has to be\n"
    "  --num-targets N   targets have to lie in 0..N-1\n"
    "  --json            one JSON object instead of a table\n"
    "\n"
    "Exit status: 0 clean, 2 usage, 3 problems found.\n";

static int parse_count(const char *name, const char *text, uint32_t *out)
{
    char *end;
    errno = 0;
    unsigned long n = strtoul(text, &end, 10);
    if (errno || *end || text[0] < '0' || text[0] > '9' || n < 1 || n > INT32_MAX)
        return err_set(ERR_USAGE, "--%s must be an integer of 1 to %d, not '%s'", name, INT32_MAX, text);
    *out = (uint32_t)n;
    return 0;
}

static int parse_options(int argc, char **argv, struct data_check *o)
{
    static const struct option options[] = {
        {"targets", required_argument, NULL, 't'}, {"allow-pipes", no_argument, NULL, 'p'},
        {"dim", required_argument, NULL, 'd'},     {"num-targets", required_argument, NULL, 'n'},
        {"json", no_argument, NULL, 'j'},          {0}};
    int c, rc = 0;
    opterr = 0;
    while (rc == 0 && (c = getopt_long(argc, argv, ":", options, NULL)) != -1) {
        switch (c) {
        case 't':
            o->targets = optarg;
            break;
        case 'p':
            o->allow_pipes = true;
            break;
        case 'd':
            rc = parse_count("dim", optarg, &o->dim);
            break;
        case 'n':
            rc = parse_count("num-targets", optarg, &o->num_targets);
            break;
        case 'j':
            o->json = true;
            break;
        case ':':
            rc = err_set(ERR_USAGE, "%s needs a value; see chorale data --help", argv[optind - 1]);
            break;
        default:
            rc = err_set(ERR_USAGE, "unknown option %s; see chorale data --help", argv[optind - 1]);
        }
    }
    if (rc < 0) return rc;
    if (optind >= argc || strcmp(argv[optind], "check") != 0)
        return err_set(ERR_USAGE, "the one thing to do is 'check': chorale data check DIR");
    if (argc - optind != 2) return err_set(ERR_USAGE, "check takes one directory: chorale data check DIR");
    o->dir = argv[optind + 1];
    return 0;
}

int main(int argc, char **argv)
{
    struct data_check o = {0};
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            fputs(usage, stdout);
            return 0;
        }
    int rc = parse_options(argc, argv, &o);
    if (rc == 0) rc = data_check_run(&o, stdout);
    return rc < 0 ? err_report("chorale data", rc) : 0;
}
