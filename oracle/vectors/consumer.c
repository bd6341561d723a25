// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Exact test vectors in C: `cc -O3 consumer.c -lm -o consumer && ./consumer FOLDER [candidate.json]` reads FOLDER/vectors.json and its
// weights, calls `encode` below for each case, prints the candidate, and ends with 1 where an answer is not equal bit for bit.
// Fill in `encode`: as it stands it does the formula of most formats, slowly. `python -m oracle vectors --folder DIR` writes the folders.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Json Json;
struct Json {
    char kind; // 0 null, b bool, n number, s text, [ list, { object
    double number;
    char *text; // of a text, or of a number its digits
    size_t count;
    char **names;
    Json *items;
};

typedef struct {
    const char *name;
    float *values;
    size_t count;
} Tensor;

typedef struct {
    size_t index;
    float activation;
} Feature;

// A layer's tensors by what they are for; those that a file does not have are empty.
typedef struct {
    int layer;
    Tensor w_enc, b_enc, b_dec, threshold;
} Weights;

static void fail(const char *what, const char *which) {
    fprintf(stderr, "%s: %s\n", what, which);
    exit(2);
}

static const Json *get(const Json *object, const char *key) {
    for (size_t i = 0; object && object->kind == '{' && i < object->count; i++)
        if (!strcmp(object->names[i], key)) return &object->items[i];
    return NULL;
}

static const char *text_of(const Json *object, const char *key) {
    const Json *value = get(object, key);
    return value && value->kind == 's' ? value->text : "";
}

static int is(const Json *object, const char *key, const char *text) { return !strcmp(text_of(object, key), text); }

static int before(const void *left, const void *right) {
    const Feature *a = left, *b = right;
    if (a->activation != b->activation) return a->activation > b->activation ? -1 : 1;
    return a->index < b->index ? -1 : 1;
}

// Your port: fills `active`, which has room for all features, with those that fire, activation descending, then index: how many.
static size_t encode(const Json *vectors, const Weights *weights, const float *residual, size_t d, Feature *active) {
    const Json *gate = get(vectors, "gate"), *input = get(vectors, "encoder_input");
    int keeps = is(gate, "kind", "topk"), subtracts = is(input, "kind", "minus_b_dec");
    if (!keeps && !is(gate, "kind", "relu") && !is(gate, "kind", "jumprelu")) fail("fill in encode: gate", text_of(gate, "kind"));
    if (!subtracts && !is(input, "kind", "identity")) fail("fill in encode: input", text_of(input, "kind"));
    if (get(gate, "times_decoder_norms")) fail("fill in encode", "times_decoder_norms");
    size_t n = weights->b_enc.count, count = 0;
    int by_feature = !strcmp(get(get(get(vectors, "tensors"), "W_enc"), "axes")->items[0].text, "n_features");
    const Json *relu = get(gate, "relu");
    float x[4096];
    if (d > sizeof x / sizeof *x) fail("the residual is too long", "encode");
    for (size_t i = 0; i < d; i++) x[i] = subtracts ? residual[i] - weights->b_dec.values[i] : residual[i];
    for (size_t j = 0; j < n; j++) {
        float sum = 0;
        for (size_t i = 0; i < d; i++) sum += x[i] * weights->w_enc.values[by_feature ? j * d + i : i * n + j];
        active[j].index = j;
        active[j].activation = sum + weights->b_enc.values[j];
    }
    if (keeps) {
        size_t k = (size_t)get(gate, "k")->number;
        qsort(active, n, sizeof *active, before);
        for (size_t j = 0; j < k; j++)
            if (relu && relu->number ? active[j].activation > 0 : active[j].activation != 0) active[count++] = active[j];
        return count;
    }
    for (size_t j = 0; j < n; j++) {
        float level = weights->threshold.count ? weights->threshold.values[weights->threshold.count == 1 ? 0 : j] : 0;
        if (active[j].activation > (level > 0 ? level : 0)) active[count++] = active[j];
    }
    qsort(active, count, sizeof *active, before);
    return count;
}

// --- JSON, as much as vectors need ----------------------------------------------------------------------------------------

static void skip(const char **at) {
    while (**at == ' ' || **at == '\n' || **at == '\r' || **at == '\t') ++*at;
}

static char *copied(const char *start, size_t length) {
    char *text = calloc(length + 1, 1);
    memcpy(text, start, length);
    return text;
}

static char *quoted(const char **at) { // the vectors' own texts have no escapes
    const char *start = ++*at;
    while (**at && **at != '"') ++*at;
    char *text = copied(start, (size_t)(*at - start));
    if (**at) ++*at;
    return text;
}

static Json parse(const char **at) {
    Json value = {0};
    skip(at);
    if (**at == '"') {
        value.kind = 's';
        value.text = quoted(at);
    } else if (**at == '[' || **at == '{') {
        value.kind = **at;
        char end = value.kind == '[' ? ']' : '}';
        ++*at;
        for (skip(at); **at && **at != end; skip(at)) {
            value.items = realloc(value.items, (value.count + 1) * sizeof *value.items);
            value.names = realloc(value.names, (value.count + 1) * sizeof *value.names);
            value.names[value.count] = NULL;
            if (value.kind == '{') {
                value.names[value.count] = quoted(at);
                skip(at);
                if (*(*at)++ != ':') fail("vectors.json is not readable", "a key without a value");
            }
            value.items[value.count++] = parse(at);
            skip(at);
            if (**at == ',') ++*at;
        }
        if (**at) ++*at;
    } else if (!strncmp(*at, "true", 4) || !strncmp(*at, "false", 5) || !strncmp(*at, "null", 4)) {
        value.kind = **at == 'n' ? 0 : 'b';
        value.number = **at == 't';
        *at += **at == 'f' ? 5 : 4;
    } else {
        char *end;
        value.kind = 'n';
        value.number = strtod(*at, &end);
        if (end == *at) fail("vectors.json is not readable at", *at);
        value.text = copied(*at, (size_t)(end - *at));
        *at = end;
    }
    return value;
}

// --- weight files ---------------------------------------------------------------------------------------------------------

static unsigned char *content(const char *folder, const char *name, size_t *size) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "rb");
    if (!file) fail("it cannot be read", path);
    fseek(file, 0, SEEK_END);
    *size = (size_t)ftell(file);
    rewind(file);
    unsigned char *bytes = calloc(*size + 1, 1);
    if (fread(bytes, 1, *size, file) != *size) fail("it cannot be read", path);
    fclose(file);
    return bytes;
}

static uint64_t little_endian(const unsigned char *bytes, int count) {
    uint64_t value = 0;
    while (count--) value = value << 8 | bytes[count];
    return value;
}

static Tensor floats(const unsigned char *bytes, size_t size, int width) { // of bfloat16 there is the upper half
    Tensor tensor = {NULL, calloc(size / (size_t)width + 1, sizeof(float)), size / (size_t)width};
    for (size_t i = 0; i < tensor.count; i++) {
        uint32_t bits = (uint32_t)little_endian(bytes + i * (size_t)width, width) << (width == 2 ? 16 : 0);
        memcpy(&tensor.values[i], &bits, sizeof bits);
    }
    return tensor;
}

static Tensor from_safetensors(const unsigned char *bytes, const char *name) {
    size_t start = 8 + (size_t)little_endian(bytes, 8);
    char *text = copied((const char *)bytes + 8, start - 8);
    const char *at = text;
    Json header = parse(&at);
    const Json *spec = get(&header, name);
    Tensor none = {0};
    if (!spec) return none;
    const Json *ends = get(spec, "data_offsets");
    size_t from = (size_t)ends->items[0].number, to = (size_t)ends->items[1].number;
    if (!is(spec, "dtype", "F32") && !is(spec, "dtype", "BF16")) fail("this dtype is not read here", text_of(spec, "dtype"));
    return floats(bytes + start + from, to - from, is(spec, "dtype", "F32") ? 4 : 2);
}

static Tensor from_npz(const unsigned char *bytes, const char *name) {
    Tensor none = {0};
    for (const unsigned char *at = bytes; little_endian(at, 4) == 0x04034b50;) {
        size_t size = (size_t)little_endian(at + 18, 4), length = (size_t)little_endian(at + 26, 2);
        const unsigned char *npy = at + 30 + length + little_endian(at + 28, 2);
        size_t header = 10 + (size_t)little_endian(npy + 8, 2);
        if (length == strlen(name) + 4 && !memcmp(at + 30, name, strlen(name))) return floats(npy + header, size - header, 4);
        at = npy + size;
    }
    return none;
}

static Tensor tensor(const Json *vectors, const char *part, int layer, const unsigned char *bytes, const char *path) {
    Tensor none = {0};
    const Json *spec = get(get(vectors, "tensors"), part);
    if (!spec) return none;
    char name[256], *place;
    snprintf(name, sizeof name - 12, "%s", text_of(spec, "name"));
    if ((place = strstr(name, "{layer}"))) {
        char rest[256];
        snprintf(rest, sizeof rest, "%s", place + 7);
        snprintf(place, sizeof name - (size_t)(place - name), "%d%s", layer, rest);
    }
    if (strstr(path, ".safetensors")) return from_safetensors(bytes, name);
    if (strstr(path, ".npz")) return from_npz(bytes, name);
    fail(".safetensors and .npz are read; your port has a reader of its own", path);
    return none;
}

static Weights layer_weights(const char *folder, const Json *vectors, int layer) {
    const Json *layers = get(vectors, "layers");
    for (size_t i = 0; i < layers->count; i++) {
        if ((int)get(&layers->items[i], "layer")->number != layer) continue;
        size_t size;
        const char *path = text_of(&layers->items[i], "path");
        unsigned char *bytes = content(folder, path, &size);
        Weights weights = {
            layer, tensor(vectors, "W_enc", layer, bytes, path), tensor(vectors, "b_enc", layer, bytes, path),
            tensor(vectors, "b_dec", layer, bytes, path), tensor(vectors, "threshold", layer, bytes, path),
        };
        free(bytes);
        return weights;
    }
    fail("there is no such layer", folder);
    exit(2);
}

int main(int argc, char **argv) {
    if (argc < 2) fail("usage", "consumer FOLDER [candidate.json]");
    size_t size;
    const char *at = (const char *)content(argv[1], "vectors.json", &size);
    Json vectors = parse(&at);
    const Json *cases = get(&vectors, "test_cases"), *notes = get(&vectors, "notes");
    size_t *failed = calloc(notes->count + 1, sizeof *failed), n_failed = 0, n = (size_t)get(&vectors, "n_features")->number;
    Feature *active = calloc(n, sizeof *active);
    Weights weights = {-1, {0}, {0}, {0}, {0}};
    FILE *output = argc > 2 ? fopen(argv[2], "w") : stdout;
    if (!output) fail("it cannot be written", argv[2]);
    fprintf(output, "{\"test_cases\": [");
    for (size_t c = 0; c < cases->count; c++) {
        const Json *test = &cases->items[c], *values = get(test, "residual"), *expected = get(test, "active"), *flags = get(test, "flags");
        float *residual = calloc(values->count + 1, sizeof *residual);
        for (size_t i = 0; i < values->count; i++) residual[i] = strtof(values->items[i].text, NULL);
        int layer = (int)get(test, "layer")->number;
        if (layer != weights.layer) weights = layer_weights(argv[1], &vectors, layer);
        size_t count = encode(&vectors, &weights, residual, values->count, active);
        int same = count == expected->count;
        fprintf(output, "%s\n{\"case\": %d, \"n_active\": %zu, \"active\": [", c ? "," : "", (int)get(test, "case")->number, count);
        for (size_t i = 0; i < count; i++) {
            fprintf(output, "%s{\"index\": %zu, \"activation\": %.9g}", i ? ", " : "", active[i].index, (double)active[i].activation);
            if (!same) continue;
            float right = strtof(get(&expected->items[i], "activation")->text, NULL);
            same = active[i].index == (size_t)get(&expected->items[i], "index")->number && !memcmp(&right, &active[i].activation, sizeof right);
        }
        fprintf(output, "]}");
        for (size_t f = 0; !same && f < flags->count; f++)
            for (size_t i = 0; i < notes->count; i++) failed[i] += !strcmp(notes->names[i], flags->items[f].text);
        n_failed += !same;
        free(residual);
    }
    fprintf(output, "\n]}\n");
    if (output != stdout) fclose(output);
    for (size_t i = 0; i < notes->count; i++)
        if (failed[i]) fprintf(stderr, "%s: %zu cases fail: %s\n", notes->names[i], failed[i], text_of(&notes->items[i], "catches"));
    return n_failed > 0;
}
