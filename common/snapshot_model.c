#include "common/snapshot.h"

#include "common/err.h"
#include "common/files.h"
#include "common/safetensors.h"
#include "common/snapshot_parts.h"

#include <stdlib.h>
#include <string.h>

#define FORMAT "chorale-model"

/* ------------------------------------------------------------------ out */

int snapshot_save_model(const char *path, const struct facts *f, const float *params)
{
    const struct model *m = &f->model;
    struct facts_parts p;
    facts_parts_init(&p, f, FORMAT);
    size_t n = m->num_tensors + p.num_tensors;
    struct safetensor *tensors = xcalloc(n, sizeof *tensors);
    float *rows = xcalloc(m->params, sizeof *rows), *at = rows;
    for (size_t i = 0; i < m->num_tensors; i++) {
        const struct tensor *t = &m->tensors[i];
        model_get(t, params, at);
        tensors[i] = (struct safetensor){
            .name = t->name, .type = TENSOR_F32, .dims = 2, .shape = {t->rows, t->cols}, .data = at};
        at += (size_t)t->rows * t->cols;
    }
    if (p.num_tensors) memcpy(tensors + m->num_tensors, p.tensors, p.num_tensors * sizeof *tensors);
    int rc = safetensors_write(path, p.pairs, p.num_pairs, tensors, n, NULL, NULL);
    free(rows);
    free(tensors);
    facts_parts_fini(&p);
    return rc;
}

/* All of a set: facts and params[P]. */
static int read_set(const char *run, uint32_t set, struct facts *facts, float **params)
{
    struct facts f;
    struct manifest m;
    struct shard_state *s = NULL;
    struct blocks b;
    int rc = facts_read(run, &f);
    if (rc < 0) return rc;
    blocks_cut(f.model.params, &b);
    rc = snapshot_read_manifest(run, set, &m);
    if (rc == 0) {
        rc = snapshot_read_blocks(run, &m, &f, 0, b.count, &s);
        manifest_fini(&m);
    }
    if (rc < 0) {
        facts_fini(&f);
        return rc;
    }
    *params = s->weights;
    s->weights = NULL;
    shard_state_free(&s);
    *facts = f;
    return 0;
}

int snapshot_export(const char *run, uint32_t set, const char *path)
{
    struct facts f;
    float *params;
    int rc = read_set(run, set, &f, &params);
    if (rc < 0) return rc;
    rc = snapshot_save_model(path, &f, params);
    free(params);
    facts_fini(&f);
    return rc;
}

/* ------------------------------------------------------------------ in */

/* Every tensor is looked up before the vector is allocated: what a header claims costs nothing. */
static int read_tensors(const struct safetensors *s, const struct model *m, float **params)
{
    const struct safetensor *t;
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < m->num_tensors; i++) {
        const uint64_t shape[2] = {m->tensors[i].rows, m->tensors[i].cols};
        rc = safetensors_expect(s, m->tensors[i].name, TENSOR_F32, 2, shape, &t);
    }
    if (rc < 0) return rc;
    float *vector = xaligned(m->params * sizeof *vector);
    for (size_t i = 0; rc == 0 && i < m->num_tensors; i++) {
        t = safetensors_find(s, m->tensors[i].name);
        float *rows = xcalloc(1, t->bytes + 1);
        rc = safetensors_read(s, t, 0, t->bytes, rows);
        if (rc == 0) model_set(&m->tensors[i], rows, vector);
        free(rows);
    }
    if (rc == 0)
        *params = vector;
    else
        free(vector);
    return rc;
}

static int load_file(const char *path, struct facts *facts, float **params)
{
    struct safetensors *s = NULL;
    struct facts f;
    uint64_t stored;
    bool has_proof;
    int rc = safetensors_open(path, &s);
    if (rc < 0) return rc;
    rc = safetensors_verify(s, &has_proof);
    if (rc == 0) rc = facts_parse(s, path, FORMAT, &f, &stored);
    if (rc == 0) {
        rc = read_tensors(s, &f.model, params);
        if (rc == 0)
            *facts = f;
        else
            facts_fini(&f);
    }
    safetensors_close(&s);
    return rc;
}

int snapshot_load_model(const char *run_or_file, struct facts *facts, float **params)
{
    if (!files_exists(run_or_file))
        return err_set(ERR_USAGE, "%s is neither a run nor a model file: there is no such file", run_or_file);
    if (!files_is_dir(run_or_file)) return load_file(run_or_file, facts, params);
    char *path = files_join(run_or_file, "final.safetensors");
    int64_t set;
    int rc;
    if (files_exists(path))
        rc = load_file(path, facts, params);
    else if ((set = snapshot_newest(run_or_file)) >= 0)
        rc = read_set(run_or_file, (uint32_t)set, facts, params);
    else
        rc = err_set(
            ERR_USAGE,
            "%s has no model yet: neither final.safetensors nor a complete checkpoint; train it first",
            run_or_file);
    free(path);
    return rc;
}
