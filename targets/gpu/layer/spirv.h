#ifndef PLANISH_SPIRV_H
#define PLANISH_SPIRV_H

#include <stddef.h>
#include <stdint.h>

enum { NOT_SPECIALISED = -1 };

/* Size of a compute shader's workgroup, and the specialisation constant that may replace each side. */
struct workgroup {
    uint32_t size[3];
    int32_t constant[3];
};

struct workgroup spirv_workgroup(const uint32_t *words, size_t count);

#endif
