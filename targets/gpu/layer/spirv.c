/* Reads the size of the workgroup out of a SPIR-V module (Khronos, "SPIR-V Specification", sections 2.3 and 3). */
#include "spirv.h"

#include <stdlib.h>

enum { HEADER_WORDS = 5, BOUND = 3 };
enum { EXECUTION_MODE = 16, EXECUTION_MODE_ID = 331, DECORATE = 71 };
enum { CONSTANT = 43, COMPOSITE = 44, SPEC_CONSTANT = 50, SPEC_COMPOSITE = 51 };
enum { LOCAL_SIZE = 17, LOCAL_SIZE_ID = 38, SPEC_ID = 1, BUILT_IN = 11, WORKGROUP_SIZE = 25 };

struct value {
    uint32_t literal;
    int32_t constant;
};

struct workgroup spirv_workgroup(const uint32_t *words, size_t count) {
    struct workgroup found = {{1, 1, 1}, {NOT_SPECIALISED, NOT_SPECIALISED, NOT_SPECIALISED}};
    if (count < HEADER_WORDS) return found;
    const uint32_t bound = words[BOUND];
    struct value *values = malloc(bound * sizeof *values);
    const uint32_t *sides = NULL; /* ids of the three sides, where they are no literals */
    uint32_t built_in = 0;        /* id of the constant decorated as the workgroup's size */
    if (!values) return found;
    for (uint32_t id = 0; id < bound; id++) values[id] = (struct value){1, NOT_SPECIALISED};
    for (size_t at = HEADER_WORDS; at < count;) {
        const uint32_t *in = words + at, length = in[0] >> 16, operation = in[0] & 0xffff;
        if (length == 0 || at + length > count) break;
        if (operation == EXECUTION_MODE && length > 5 && in[2] == LOCAL_SIZE)
            for (int side = 0; side < 3; side++) found.size[side] = in[3 + side];
        if (operation == EXECUTION_MODE_ID && length > 5 && in[2] == LOCAL_SIZE_ID) sides = in + 3;
        if (operation == DECORATE && length > 3) {
            if (in[2] == SPEC_ID && in[1] < bound) values[in[1]].constant = (int32_t)in[3];
            if (in[2] == BUILT_IN && in[3] == WORKGROUP_SIZE) built_in = in[1];
        }
        if ((operation == CONSTANT || operation == SPEC_CONSTANT) && length > 3 && in[2] < bound)
            values[in[2]].literal = in[3];
        if ((operation == COMPOSITE || operation == SPEC_COMPOSITE) && length > 5 && built_in && in[2] == built_in)
            sides = in + 3;
        at += length;
    }
    for (int side = 0; sides && side < 3; side++)
        if (sides[side] < bound) {
            found.size[side] = values[sides[side]].literal;
            found.constant[side] = values[sides[side]].constant;
        }
    free(values);
    return found;
}
