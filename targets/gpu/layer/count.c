/* A Vulkan layer that counts what a program asks of the GPU: dispatches with their kernels, copies, barriers,
 * submissions and memory, in phases that the program itself names by `planish_phase`. `planish_write` gives it as JSON.
 *
 * What is counted is what is recorded into command buffers. LiteRT records anew for each inference.
 * A process is taken to use one driver, so the next layer's functions are the same for all devices. */
#define VK_NO_PROTOTYPES
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vulkan/vk_layer.h>
#include <vulkan/vulkan.h>

#include "spirv.h"

#define EXPORT __attribute__((visibility("default")))
#define COUNTERS(X) X(dispatches) X(indirect) X(workgroups) X(invocations) X(barriers) X(submits) X(copies) \
    X(copied_bytes) X(allocations) X(allocated_bytes)
#define FIELD(name) uint64_t name;
struct phase { char name[32]; COUNTERS(FIELD) };
struct module { uint64_t handle; size_t words; struct workgroup workgroup; };
struct kernel { uint64_t handle; size_t words; uint32_t size[3]; char *statistics; };
struct buffer { uint64_t handle; size_t kernel; };
struct dispatch { size_t phase, kernel; uint32_t groups[3]; };

#define LIST(type, name) static struct { struct type *at; size_t count, room; } name
LIST(phase, phases);
LIST(module, modules);
LIST(kernel, kernels);
LIST(buffer, buffers);
LIST(dispatch, dispatches);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *grown(void *at, size_t *room, size_t size) {
    *room = *room ? 2 * *room : 256;
    at = realloc(at, *room * size);
    if (!at) abort();
    return at;
}

#define PUSH(list, ...) do { \
        if (list.count == list.room) list.at = grown(list.at, &list.room, sizeof *list.at); \
        list.at[list.count++] = __VA_ARGS__; \
    } while (0)
#define HANDLE(handle) ((uint64_t)(uintptr_t)(handle))
/* The newest entry, since a driver gives the handle of what was destroyed again; `list.count` when there is none. */
#define FIND(list, wanted, index) do { \
        for (index = list.count; index > 0 && list.at[index - 1].handle != (wanted); index--) {} \
        index = index ? index - 1 : list.count; \
    } while (0)

static struct phase *now(void) {
    if (!phases.count) PUSH(phases, (struct phase){.name = "setup"});
    return &phases.at[phases.count - 1];
}

/* Functions of the next layer, or of the driver. */
static VkInstance instance_of_all;
static PFN_vkGetInstanceProcAddr next_instance;
static PFN_vkGetDeviceProcAddr next_device;
#define COUNTED(X) X(vkCmdDispatch) X(vkCmdDispatchBase) X(vkCmdDispatchIndirect) X(vkCmdCopyBuffer) \
    X(vkCmdCopyBufferToImage) X(vkCmdCopyImageToBuffer) X(vkCmdPipelineBarrier) X(vkCmdPipelineBarrier2) \
    X(vkCmdBindPipeline) X(vkQueueSubmit) X(vkQueueSubmit2) X(vkAllocateMemory) X(vkCreateShaderModule) \
    X(vkCreateComputePipelines)
#define NEXT(name) static PFN_##name next_##name;
COUNTED(NEXT)
NEXT(vkGetPipelineExecutablePropertiesKHR)
NEXT(vkGetPipelineExecutableStatisticsKHR)

#define HOOK(result, name, ...) static VKAPI_ATTR result VKAPI_CALL name(__VA_ARGS__)

static void counted_dispatch(VkCommandBuffer commands, uint32_t x, uint32_t y, uint32_t z) {
    pthread_mutex_lock(&lock);
    struct phase *phase = now();
    const uint64_t groups = (uint64_t)x * y * z;
    size_t at, kernel = kernels.count;
    FIND(buffers, HANDLE(commands), at);
    if (at < buffers.count) kernel = buffers.at[at].kernel;
    phase->dispatches++;
    phase->workgroups += groups;
    if (kernel < kernels.count) {
        const uint32_t *size = kernels.at[kernel].size;
        phase->invocations += groups * size[0] * size[1] * size[2];
        PUSH(dispatches, (struct dispatch){phases.count - 1, kernel, {x, y, z}});
    }
    pthread_mutex_unlock(&lock);
}

#define ADD(counter, amount) do { \
        pthread_mutex_lock(&lock); \
        now()->counter += (amount); \
        pthread_mutex_unlock(&lock); \
    } while (0)

HOOK(void, count_vkCmdDispatch, VkCommandBuffer commands, uint32_t x, uint32_t y, uint32_t z) {
    counted_dispatch(commands, x, y, z);
    next_vkCmdDispatch(commands, x, y, z);
}

HOOK(void, count_vkCmdDispatchBase, VkCommandBuffer commands, uint32_t a, uint32_t b, uint32_t c, uint32_t x,
     uint32_t y, uint32_t z) {
    counted_dispatch(commands, x, y, z);
    next_vkCmdDispatchBase(commands, a, b, c, x, y, z);
}

HOOK(void, count_vkCmdDispatchIndirect, VkCommandBuffer commands, VkBuffer buffer, VkDeviceSize offset) {
    ADD(indirect, 1);
    next_vkCmdDispatchIndirect(commands, buffer, offset);
}

HOOK(void, count_vkCmdCopyBuffer, VkCommandBuffer commands, VkBuffer from, VkBuffer to, uint32_t count,
     const VkBufferCopy *regions) {
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < count; i++) bytes += regions[i].size;
    ADD(copies, 1);
    ADD(copied_bytes, bytes);
    next_vkCmdCopyBuffer(commands, from, to, count, regions);
}

HOOK(void, count_vkCmdCopyBufferToImage, VkCommandBuffer commands, VkBuffer from, VkImage to, VkImageLayout layout,
     uint32_t count, const VkBufferImageCopy *regions) {
    ADD(copies, 1);
    next_vkCmdCopyBufferToImage(commands, from, to, layout, count, regions);
}

HOOK(void, count_vkCmdCopyImageToBuffer, VkCommandBuffer commands, VkImage from, VkImageLayout layout, VkBuffer to,
     uint32_t count, const VkBufferImageCopy *regions) {
    ADD(copies, 1);
    next_vkCmdCopyImageToBuffer(commands, from, layout, to, count, regions);
}

HOOK(void, count_vkCmdPipelineBarrier, VkCommandBuffer commands, VkPipelineStageFlags from, VkPipelineStageFlags to,
     VkDependencyFlags flags, uint32_t memory_count, const VkMemoryBarrier *memory, uint32_t buffer_count,
     const VkBufferMemoryBarrier *buffer, uint32_t image_count, const VkImageMemoryBarrier *image) {
    ADD(barriers, 1);
    next_vkCmdPipelineBarrier(commands, from, to, flags, memory_count, memory, buffer_count, buffer, image_count,
                              image);
}

HOOK(void, count_vkCmdPipelineBarrier2, VkCommandBuffer commands, const VkDependencyInfo *info) {
    ADD(barriers, 1);
    next_vkCmdPipelineBarrier2(commands, info);
}

HOOK(void, count_vkCmdBindPipeline, VkCommandBuffer commands, VkPipelineBindPoint point, VkPipeline pipeline) {
    if (point == VK_PIPELINE_BIND_POINT_COMPUTE) {
        size_t kernel, at;
        pthread_mutex_lock(&lock);
        FIND(kernels, HANDLE(pipeline), kernel);
        FIND(buffers, HANDLE(commands), at);
        if (at == buffers.count) PUSH(buffers, (struct buffer){HANDLE(commands), kernel});
        else buffers.at[at].kernel = kernel;
        pthread_mutex_unlock(&lock);
    }
    next_vkCmdBindPipeline(commands, point, pipeline);
}

HOOK(VkResult, count_vkQueueSubmit, VkQueue queue, uint32_t count, const VkSubmitInfo *submits, VkFence fence) {
    ADD(submits, 1);
    return next_vkQueueSubmit(queue, count, submits, fence);
}

HOOK(VkResult, count_vkQueueSubmit2, VkQueue queue, uint32_t count, const VkSubmitInfo2 *submits, VkFence fence) {
    ADD(submits, 1);
    return next_vkQueueSubmit2(queue, count, submits, fence);
}

HOOK(VkResult, count_vkAllocateMemory, VkDevice device, const VkMemoryAllocateInfo *info,
     const VkAllocationCallbacks *callbacks, VkDeviceMemory *memory) {
    ADD(allocations, 1);
    ADD(allocated_bytes, info->allocationSize);
    return next_vkAllocateMemory(device, info, callbacks, memory);
}

HOOK(VkResult, count_vkCreateShaderModule, VkDevice device, const VkShaderModuleCreateInfo *info,
     const VkAllocationCallbacks *callbacks, VkShaderModule *module) {
    const VkResult result = next_vkCreateShaderModule(device, info, callbacks, module);
    if (result == VK_SUCCESS) {
        const size_t words = info->codeSize / 4;
        pthread_mutex_lock(&lock);
        PUSH(modules, (struct module){HANDLE(*module), words, spirv_workgroup(info->pCode, words)});
        pthread_mutex_unlock(&lock);
    }
    return result;
}

/* What the driver's compiler tells of a kernel, as the inside of a JSON object; NULL when it tells nothing. */
static char *statistics_of(VkDevice device, VkPipeline pipeline) {
    if (!next_vkGetPipelineExecutablePropertiesKHR || !next_vkGetPipelineExecutableStatisticsKHR) return NULL;
    const VkPipelineInfoKHR info = {.sType = VK_STRUCTURE_TYPE_PIPELINE_INFO_KHR, .pipeline = pipeline};
    uint32_t executables = 0;
    next_vkGetPipelineExecutablePropertiesKHR(device, &info, &executables, NULL);
    char *text = NULL;
    size_t size;
    FILE *stream = open_memstream(&text, &size);
    if (!stream) return NULL;
    for (uint32_t i = 0; i < executables; i++) {
        const VkPipelineExecutableInfoKHR which = {
            .sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_INFO_KHR, .pipeline = pipeline, .executableIndex = i};
        uint32_t count = 0;
        next_vkGetPipelineExecutableStatisticsKHR(device, &which, &count, NULL);
        VkPipelineExecutableStatisticKHR *all = calloc(count, sizeof *all);
        if (!all) break;
        for (uint32_t j = 0; j < count; j++) all[j].sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_STATISTIC_KHR;
        next_vkGetPipelineExecutableStatisticsKHR(device, &which, &count, all);
        for (uint32_t j = 0; j < count; j++) {
            fprintf(stream, "%s\"%s\": ", i + j ? ", " : "", all[j].name);
            if (all[j].format == VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_FLOAT64_KHR)
                fprintf(stream, "%.9g", all[j].value.f64);
            else if (all[j].format == VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_BOOL32_KHR)
                fprintf(stream, "%d", all[j].value.b32 != 0);
            else
                fprintf(stream, "%" PRIu64, all[j].value.u64);
        }
        free(all);
    }
    fclose(stream);
    return text;
}

static struct kernel kernel_of(const VkComputePipelineCreateInfo *info, VkPipeline pipeline) {
    struct kernel kernel = {.handle = HANDLE(pipeline), .size = {1, 1, 1}};
    size_t at;
    FIND(modules, HANDLE(info->stage.module), at);
    if (at == modules.count) return kernel;
    const struct module *module = &modules.at[at];
    const VkSpecializationInfo *special = info->stage.pSpecializationInfo;
    kernel.words = module->words;
    memcpy(kernel.size, module->workgroup.size, sizeof kernel.size);
    for (uint32_t i = 0; special && i < special->mapEntryCount; i++)
        for (int side = 0; side < 3; side++)
            if (module->workgroup.constant[side] == (int32_t)special->pMapEntries[i].constantID)
                memcpy(&kernel.size[side], (const char *)special->pData + special->pMapEntries[i].offset, 4);
    return kernel;
}

HOOK(VkResult, count_vkCreateComputePipelines, VkDevice device, VkPipelineCache cache, uint32_t count,
     const VkComputePipelineCreateInfo *infos, const VkAllocationCallbacks *callbacks, VkPipeline *pipelines) {
    VkComputePipelineCreateInfo *asking = malloc(count * sizeof *asking);
    if (!asking) return VK_ERROR_OUT_OF_HOST_MEMORY;
    memcpy(asking, infos, count * sizeof *asking);
    for (uint32_t i = 0; i < count && next_vkGetPipelineExecutableStatisticsKHR; i++)
        asking[i].flags |= VK_PIPELINE_CREATE_CAPTURE_STATISTICS_BIT_KHR;
    const VkResult result = next_vkCreateComputePipelines(device, cache, count, asking, callbacks, pipelines);
    pthread_mutex_lock(&lock);
    for (uint32_t i = 0; i < count && result == VK_SUCCESS; i++) {
        struct kernel kernel = kernel_of(&infos[i], pipelines[i]);
        kernel.statistics = statistics_of(device, pipelines[i]);
        PUSH(kernels, kernel);
    }
    pthread_mutex_unlock(&lock);
    free(asking);
    return result;
}

/* The loader's link to the next layer: a structure in the chain of a create call. */
#define LINK(type, info, structure) ({ \
        type *link = (type *)(uintptr_t)(info)->pNext; \
        while (link && !(link->sType == structure && link->function == VK_LAYER_LINK_INFO)) \
            link = (type *)(uintptr_t)link->pNext; \
        link; \
    })

HOOK(VkResult, count_vkCreateInstance, const VkInstanceCreateInfo *info, const VkAllocationCallbacks *callbacks,
     VkInstance *instance) {
    VkLayerInstanceCreateInfo *link =
        LINK(VkLayerInstanceCreateInfo, info, VK_STRUCTURE_TYPE_LOADER_INSTANCE_CREATE_INFO);
    if (!link) return VK_ERROR_INITIALIZATION_FAILED;
    next_instance = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
    link->u.pLayerInfo = link->u.pLayerInfo->pNext;
    const VkResult result = ((PFN_vkCreateInstance)next_instance(NULL, "vkCreateInstance"))(info, callbacks, instance);
    if (result == VK_SUCCESS) instance_of_all = *instance;
    return result;
}

HOOK(VkResult, count_vkCreateDevice, VkPhysicalDevice physical, const VkDeviceCreateInfo *info,
     const VkAllocationCallbacks *callbacks, VkDevice *device) {
    VkLayerDeviceCreateInfo *link = LINK(VkLayerDeviceCreateInfo, info, VK_STRUCTURE_TYPE_LOADER_DEVICE_CREATE_INFO);
    if (!link) return VK_ERROR_INITIALIZATION_FAILED;
    VkLayerDeviceLink *mine = link->u.pLayerInfo;
    PFN_vkCreateDevice create = (PFN_vkCreateDevice)mine->pfnNextGetInstanceProcAddr(instance_of_all, "vkCreateDevice");
    /* First with the extension that gives statistics, which the program did not ask for. */
    const uint32_t count = info->enabledExtensionCount;
    const char **names = malloc((count + 1) * sizeof *names);
    if (!names) return VK_ERROR_OUT_OF_HOST_MEMORY;
    for (uint32_t i = 0; i < count; i++) names[i] = info->ppEnabledExtensionNames[i];
    names[count] = VK_KHR_PIPELINE_EXECUTABLE_PROPERTIES_EXTENSION_NAME;
    VkPhysicalDevicePipelineExecutablePropertiesFeaturesKHR feature = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PIPELINE_EXECUTABLE_PROPERTIES_FEATURES_KHR,
        .pNext = (void *)(uintptr_t)info->pNext,
        .pipelineExecutableInfo = VK_TRUE};
    VkDeviceCreateInfo more = *info;
    more.pNext = &feature;
    more.enabledExtensionCount = count + 1;
    more.ppEnabledExtensionNames = names;
    link->u.pLayerInfo = mine->pNext;
    VkResult result = create(physical, &more, callbacks, device);
    const int told = result == VK_SUCCESS;
    if (!told) {
        link->u.pLayerInfo = mine->pNext;
        result = create(physical, info, callbacks, device);
    }
    free(names);
    if (result != VK_SUCCESS) return result;
    next_device = mine->pfnNextGetDeviceProcAddr;
#define RESOLVE(name) next_##name = (PFN_##name)next_device(*device, #name);
    COUNTED(RESOLVE)
    if (told) {
        RESOLVE(vkGetPipelineExecutablePropertiesKHR)
        RESOLVE(vkGetPipelineExecutableStatisticsKHR)
    }
    return result;
}

static PFN_vkVoidFunction counted(const char *name) {
#define ANSWER(function) if (!strcmp(name, #function)) return (PFN_vkVoidFunction)count_##function;
    COUNTED(ANSWER)
    return NULL;
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL device_function(VkDevice device, const char *name) {
    if (!strcmp(name, "vkGetDeviceProcAddr")) return (PFN_vkVoidFunction)device_function;
    PFN_vkVoidFunction next = next_device(device, name), mine = counted(name);
    return next && mine ? mine : next; /* what the driver does not have is not there */
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL instance_function(VkInstance instance, const char *name) {
    if (!strcmp(name, "vkGetInstanceProcAddr")) return (PFN_vkVoidFunction)instance_function;
    if (!strcmp(name, "vkGetDeviceProcAddr")) return (PFN_vkVoidFunction)device_function;
    if (!strcmp(name, "vkCreateInstance")) return (PFN_vkVoidFunction)count_vkCreateInstance;
    if (!strcmp(name, "vkCreateDevice")) return (PFN_vkVoidFunction)count_vkCreateDevice;
    PFN_vkVoidFunction next = next_instance ? next_instance(instance, name) : NULL, mine = counted(name);
    return next && mine ? mine : next;
}

EXPORT VKAPI_ATTR VkResult VKAPI_CALL vkNegotiateLoaderLayerInterfaceVersion(VkNegotiateLayerInterface *offer) {
    offer->loaderLayerInterfaceVersion = 2;
    offer->pfnGetInstanceProcAddr = instance_function;
    offer->pfnGetDeviceProcAddr = device_function;
    offer->pfnGetPhysicalDeviceProcAddr = NULL;
    return VK_SUCCESS;
}

/* For the program that is counted: from here on counts belong to the phase `name`. */
EXPORT void planish_phase(const char *name) {
    pthread_mutex_lock(&lock);
    now();
    struct phase phase = {0};
    snprintf(phase.name, sizeof phase.name, "%s", name);
    PUSH(phases, phase);
    pthread_mutex_unlock(&lock);
}

/* Writes all that was counted as JSON; 0 on success. A dispatch is [phase, kernel, groups x, y, z]. */
EXPORT int planish_write(const char *path) {
    FILE *stream = fopen(path, "w");
    if (!stream) return -1;
    pthread_mutex_lock(&lock);
    now();
    fprintf(stream, "{\"phases\": [");
    for (size_t i = 0; i < phases.count; i++) {
        fprintf(stream, "%s\n{\"name\": \"%s\"", i ? "," : "", phases.at[i].name);
#define PRINT(counter) fprintf(stream, ", \"" #counter "\": %" PRIu64, phases.at[i].counter);
        COUNTERS(PRINT)
        fprintf(stream, "}");
    }
    fprintf(stream, "],\n\"kernels\": [");
    for (size_t i = 0; i < kernels.count; i++) {
        const struct kernel *kernel = &kernels.at[i];
        fprintf(stream, "%s\n{\"workgroup\": [%u, %u, %u], \"spirv_words\": %zu, \"statistics\": {%s}}", i ? "," : "",
                kernel->size[0], kernel->size[1], kernel->size[2], kernel->words,
                kernel->statistics ? kernel->statistics : "");
    }
    fprintf(stream, "],\n\"dispatches\": [");
    for (size_t i = 0; i < dispatches.count; i++) {
        const struct dispatch *dispatch = &dispatches.at[i];
        fprintf(stream, "%s[%zu, %zu, %u, %u, %u]", i ? ", " : "", dispatch->phase, dispatch->kernel,
                dispatch->groups[0], dispatch->groups[1], dispatch->groups[2]);
    }
    fprintf(stream, "]}\n");
    pthread_mutex_unlock(&lock);
    return fclose(stream);
}
