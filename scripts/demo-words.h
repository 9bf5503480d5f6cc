/* The text that scripts/demo-corpus.c says: templates and word lists of our own, chosen so that every phone
 * of English is common. Included there and nowhere else. */
#ifndef SCRIPTS_DEMO_WORDS_H
#define SCRIPTS_DEMO_WORDS_H

#include <stddef.h>

/* Sentences: %X is a word of list X. */
static const char *const templates[] = {
    "the %A %N %V %P the %A %N",
    "%W %V a %A %N %P the %N",
    "%D %N %V %P %L, and %W %V the %N",
    "when the %N %V, %W %V %P %L",
    "%W and %W %V %D %A %N on %Y",
    "please call %W at %D %D %D %D %D",
    "the number is %D %D, %D %D, %D %D %D",
    "did %W leave the %N %P the %A %N?",
    "it was %D minutes to %D, and the %N %V again",
    "spell it as %S %S %S %S %S",
    "the code for %L is %S %S %D %D",
    "on %Y %W will go from %L to %L",
    "no %N ever %V so %Q %P the %N",
    "%W %Q %V the %A %N, but not the %A one",
    "%D times the %A %N %V %P %L",
    "she %V %Q, he %V the %N %P the %N",
    "why is the %N %P %L so %A?",
    "choose the %A %N, then measure the %N",
};
static const char *const adjectives[] = {
    "green",  "yellow", "tiny",   "huge",  "wooden", "quiet",  "shiny",   "rough",  "early",    "late",
    "foggy",  "bright", "clever", "lazy",  "narrow", "round",  "joyful",  "frozen", "warm",     "sharp",
    "smooth", "broken", "purple", "young", "usual",  "silver", "thirsty", "loud",   "peculiar", "cheap",
};
static const char *const nouns[] = {
    "river",  "engine", "teacher", "kitchen", "bird",   "garden", "window",  "bridge", "mouse",  "judge",
    "cloud",  "thumb",  "school",  "poison",  "vision", "father", "leather", "church", "fox",    "queen",
    "yacht",  "guitar", "shadow",  "village", "jacket", "boy",    "tower",   "farmer", "beach",  "treasure",
    "hammer", "book",   "song",    "path",    "owl",    "chair",  "doctor",  "planet", "valley", "cough",
};
static const char *const verbs[] = {
    "found",  "watched", "carried", "pushed",  "heard",   "followed", "measured",
    "caught", "painted", "joined",  "enjoyed", "changed", "opened",   "pulled",
    "washed", "avoided", "brought", "knew",    "thanked", "visited",
};
static const char *const adverbs[] = {
    "slowly", "gently", "loudly", "often", "rarely", "together", "usually", "again", "quickly", "badly",
};
static const char *const prepositions[] = {
    "under", "behind", "near", "above", "without", "through", "beyond", "beside", "around", "with",
};
static const char *const names[] = {
    "George", "Joyce", "Arthur", "Zoe",  "Victor", "Yvonne",  "Hugh", "Theo",   "Sheila",
    "Jacob",  "Wendy", "Boris",  "Ruth", "Olive",  "Charles", "Faye", "Nathan", "Kitty",
};
static const char *const places[] = {
    "Oxford",  "Java",  "the harbour", "Peru",   "the old mill", "Vienna",      "Geneva", "Egypt",
    "Toronto", "Delhi", "the top",     "Norway", "Lisbon",       "the theatre", "Kyoto",  "the south",
};
static const char *const days[] = {
    "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday",
};
static const char *const digits[] = {
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
};
static const char *const letters[] = {
    "A.", "B.", "C.", "D.", "E.", "F.", "G.", "H.", "I.", "J.", "K.", "L.", "M.",
    "N.", "O.", "P.", "Q.", "R.", "S.", "T.", "U.", "V.", "W.", "X.", "Y.", "Z.",
};
#define LIST(letter, words)                                                                                  \
    {                                                                                                        \
        letter, words, sizeof words / sizeof *words                                                          \
    }
static const struct {
    char letter;
    const char *const *words;
    size_t count;
} lists[] = {LIST('A', adjectives),   LIST('N', nouns),  LIST('V', verbs),  LIST('Q', adverbs),
             LIST('P', prepositions), LIST('W', names),  LIST('L', places), LIST('Y', days),
             LIST('D', digits),       LIST('S', letters)};

#endif
