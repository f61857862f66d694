/* Making, naming and ending communicators: the part of HCCL that is not communication.
 *
 * What torch_npu can do without (symmetric memory, rank tables, switching network cards, resuming)
 * is not there: it finds no such symbol and says so.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime.h"
#include "transport.h"

#define ROOT_INFO_BYTES 4108
#define CONFIG_MAGIC 0xf0f0f0f0u
#define CONFIG_PARAMETERS 12 /* through the name of the buffer, in the order of hccl_types.h */
#define EXEC_TIMEOUT 1836.0  /* HCCL's own defaults, in seconds */
#define CONNECT_TIMEOUT 120.0
#define NOT_SET (-1)

/* The beginning of HcclCommConfig (hccl_types.h): what has a meaning without a network. */
typedef struct {
    uint64_t size;
    uint32_t magic, version;
    uint64_t reserved;
    uint32_t buffer_size, deterministic;
    char name[NAME_BYTES];
    char udi[NAME_BYTES];
    uint32_t expansion_mode, traffic_class, service_level, world_rank;
    uint64_t job;
    uint8_t zero_copy;
    int32_t exec_timeout;
} Config;

static int32_t deterministic; /* results always are */

static HcclResult refuse(HcclResult code, const char *call, const char *what) {
    sim_fail(ACL_ERROR_INTERNAL_ERROR, "%s: %s", call, what);
    return code;
}

/* --- settings -------------------------------------------------------------------------------- */

/* A whole number of seconds from the environment; 0 means for ever. */
static HcclResult seconds_from(const char *call, const char *variable, double missing,
                               double *seconds) {
    const char *text = getenv(variable);
    *seconds = missing;
    if (!text || !*text) return HCCL_SUCCESS;
    char *end;
    unsigned long value = strtoul(text, &end, 10);
    if (*end || *text == '-' || value > INT32_MAX) {
        sim_fail(ACL_ERROR_INTERNAL_ERROR, "%s: %s is \"%s\", expected a whole number of seconds",
                 call, variable, text);
        return HCCL_E_PARA;
    }
    *seconds = (double)value;
    return HCCL_SUCCESS;
}

static HcclResult read_config(const char *call, const Config *config, const char **name,
                              double *timeout) {
    if (!config) return refuse(HCCL_E_PTR, call, "no configuration given");
    if (config->magic != CONFIG_MAGIC)
        return refuse(HCCL_E_PARA, call, "the configuration was not made by HcclCommConfigInit");
    /* Older callers know a shorter structure. */
    if (config->size >= offsetof(Config, udi)) {
        if (!memchr(config->name, '\0', sizeof config->name))
            return refuse(HCCL_E_PARA, call, "the name is longer than 127 bytes");
        *name = config->name;
    }
    if (config->size >= sizeof(Config) && config->exec_timeout != NOT_SET) {
        if (config->exec_timeout < 0)
            return refuse(HCCL_E_PARA, call, "the execution timeout is negative");
        *timeout = config->exec_timeout;
    }
    return HCCL_SUCCESS;
}

/* --- making ---------------------------------------------------------------------------------- */

static HcclResult create(const char *call, const Address *address, uint32_t ranks, uint32_t rank,
                         const char *name, double timeout, HcclComm *created) {
    Communicator *comm;
    double connect;
    HcclResult result = seconds_from(call, "HCCL_CONNECT_TIMEOUT", CONNECT_TIMEOUT, &connect);
    if (result != HCCL_SUCCESS) return result;
    if (ranks == 0 || ranks > MAX_RANKS || rank >= ranks) {
        sim_fail(ACL_ERROR_INTERNAL_ERROR,
                 "%s: rank %u of %u, but the simulated HCCL knows 1 to %d ranks, counted from 0",
                 call, rank, ranks, MAX_RANKS);
        return HCCL_E_PARA;
    }
    result = transport_join(call, address, ranks, rank, name, &comm);
    if (result == HCCL_SUCCESS) {
        result = transport_complete(comm, call, address, connect);
        if (result != HCCL_SUCCESS) transport_detach(comm);
    }
    transport_withdraw(address);
    if (result != HCCL_SUCCESS) return result;
    comm->timeout = timeout;
    comm_register(comm);
    *created = comm;
    return HCCL_SUCCESS;
}

EXPORT HcclResult HcclGetRootInfo(void *root_info) {
    if (!root_info) return refuse(HCCL_E_PTR, "HcclGetRootInfo", "no memory given");
    Address address;
    HcclResult result = transport_offer("HcclGetRootInfo", &address);
    if (result != HCCL_SUCCESS) return result;
    memset(root_info, 0, ROOT_INFO_BYTES);
    memcpy(root_info, &address, sizeof address);
    return HCCL_SUCCESS;
}

static HcclResult init(const char *call, uint32_t ranks, const void *root_info, uint32_t rank,
                       const Config *config, bool configured, HcclComm *created) {
    if (!root_info || !created) return refuse(HCCL_E_PTR, call, "no root info or no place given");
    const char *name = NULL;
    double timeout;
    HcclResult result = seconds_from(call, "HCCL_EXEC_TIMEOUT", EXEC_TIMEOUT, &timeout);
    if (result == HCCL_SUCCESS && configured) result = read_config(call, config, &name, &timeout);
    if (result != HCCL_SUCCESS) return result;
    Address address;
    memcpy(&address, root_info, sizeof address);
    return create(call, &address, ranks, rank, name, timeout, created);
}

EXPORT HcclResult HcclCommInitRootInfo(uint32_t ranks, const void *root_info, uint32_t rank,
                                       HcclComm *created) {
    return init("HcclCommInitRootInfo", ranks, root_info, rank, NULL, false, created);
}

EXPORT HcclResult HcclCommInitRootInfoConfig(uint32_t ranks, const void *root_info, uint32_t rank,
                                             const Config *config, HcclComm *created) {
    return init("HcclCommInitRootInfoConfig", ranks, root_info, rank, config, true, created);
}

static HcclResult check_devices(const char *call, uint32_t count, const int32_t *devices) {
    if (count == 0 || count > MAX_RANKS)
        return refuse(HCCL_E_PARA, call, "no devices, or too many");
    for (uint32_t i = 0; i < count; i++) {
        if (devices[i] < 0 || devices[i] >= sim_config.devices)
            return refuse(HCCL_E_PARA, call, "the list holds a device that is not there");
        for (uint32_t j = 0; j < i; j++)
            if (devices[j] == devices[i])
                return refuse(HCCL_E_PARA, call, "the list holds a device twice");
    }
    return HCCL_SUCCESS;
}

/* Ranks of one process, which then calls for each from a thread of its own. */
EXPORT HcclResult HcclCommInitAll(uint32_t count, int32_t *devices, HcclComm *created) {
    const char *call = "HcclCommInitAll";
    if (!devices || !created) return refuse(HCCL_E_PTR, call, "no devices or no place given");
    Communicator *joined[MAX_RANKS];
    Address address;
    double timeout;
    HcclResult result = check_devices(call, count, devices);
    if (result == HCCL_SUCCESS)
        result = seconds_from(call, "HCCL_EXEC_TIMEOUT", EXEC_TIMEOUT, &timeout);
    if (result == HCCL_SUCCESS) result = transport_offer(call, &address);
    if (result != HCCL_SUCCESS) return result;
    uint32_t rank = 0;
    for (; rank < count && result == HCCL_SUCCESS; rank++)
        result = transport_join(call, &address, count, rank, NULL, &joined[rank]);
    transport_withdraw(&address);
    if (result != HCCL_SUCCESS) {
        for (rank--; rank > 0; rank--) transport_detach(joined[rank - 1]);
        return result;
    }
    for (rank = 0; rank < count; rank++) {
        joined[rank]->timeout = timeout;
        comm_register(joined[rank]);
        created[rank] = joined[rank];
    }
    return HCCL_SUCCESS;
}

/* --- parts of a communicator ----------------------------------------------------------------- */

static uint64_t hash_members(const uint32_t *members, uint32_t count) {
    uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a */
    for (uint32_t i = 0; i < count; i++) hash = (hash ^ members[i]) * 0x100000001b3u;
    return hash;
}

static HcclResult publish(const char *call, Communicator *parent, Offer **published, uint64_t id,
                          uint64_t members, Address *address) {
    Seat *seat = &parent->segment->seats[parent->rank];
    for (int i = 0; i < OFFERS; i++) {
        uint32_t closed = 0;
        Offer *offer = &seat->offers[i];
        if (!atomic_compare_exchange_strong(&offer->open, &closed, 1)) continue;
        HcclResult result = transport_offer(call, address);
        offer->id = id;
        offer->members = members;
        offer->address = *address;
        atomic_store(&offer->open, result == HCCL_SUCCESS ? 2 : 0);
        for (uint32_t rank = 0; rank < parent->ranks; rank++)
            if (rank != parent->rank) transport_ring(parent, rank);
        *published = offer;
        return result;
    }
    return refuse(HCCL_E_UNAVAIL, call, "too many communicators are being made at the same time");
}

static HcclResult await_offer(const char *call, Communicator *parent, uint32_t root, uint64_t id,
                              uint64_t members, Address *address) {
    double seconds;
    HcclResult result = seconds_from(call, "HCCL_CONNECT_TIMEOUT", CONNECT_TIMEOUT, &seconds);
    if (result != HCCL_SUCCESS) return result;
    Wait wait = transport_wait(call, seconds);
    Seat *seat = &parent->segment->seats[root];
    for (;;) {
        transport_look(parent, &wait);
        for (int i = 0; i < OFFERS; i++) {
            Offer *offer = &seat->offers[i];
            if (atomic_load(&offer->open) != 2 || offer->id != id || offer->members != members)
                continue;
            *address = offer->address;
            return HCCL_SUCCESS;
        }
        result = transport_pause(parent, &wait, root);
        if (result != HCCL_SUCCESS) return result;
    }
}

/* The first member offers the memory of the new communicator in its seat of the parent. */
static HcclResult create_part(const char *call, Communicator *parent, uint32_t count,
                              const uint32_t *members, uint64_t id, uint32_t rank,
                              const Config *config, HcclComm *created) {
    const char *name = NULL;
    double timeout = parent->timeout;
    HcclResult result = read_config(call, config, &name, &timeout);
    if (result != HCCL_SUCCESS) return result;
    if (count == 0 || count > parent->ranks || rank >= count || members[rank] != parent->rank)
        return refuse(HCCL_E_PARA, call, "this rank is not where the list of ranks has it");
    for (uint32_t i = 0; i < count; i++)
        if (members[i] >= parent->ranks)
            return refuse(HCCL_E_PARA, call, "the list holds a rank that the parent has not");
    uint64_t hash = hash_members(members, count);
    Address address;
    Offer *offer = NULL;
    if (rank == 0)
        result = publish(call, parent, &offer, id, hash, &address);
    else
        result = await_offer(call, parent, members[0], id, hash, &address);
    if (result == HCCL_SUCCESS)
        result = create(call, &address, count, rank, name, timeout, created);
    if (offer) atomic_store(&offer->open, 0);
    return result;
}

EXPORT HcclResult HcclCreateSubCommConfig(HcclComm *parent, uint32_t count, uint32_t *members,
                                          uint64_t id, uint32_t rank, const Config *config,
                                          HcclComm *created) {
    const char *call = "HcclCreateSubCommConfig";
    if (!parent || !members || !created)
        return refuse(HCCL_E_PTR, call, "no parent, no list of ranks or no place given");
    Communicator *comm = comm_hold(*parent, call);
    if (!comm) return HCCL_E_PARA;
    HcclResult result = create_part(call, comm, count, members, id, rank, config, created);
    comm_release(comm);
    return result;
}

/* --- asking ---------------------------------------------------------------------------------- */

EXPORT HcclResult HcclCommDestroy(HcclComm comm) { return comm_destroy(comm); }

EXPORT HcclResult HcclGetCommName(HcclComm handle, char *name) {
    if (!name) return refuse(HCCL_E_PTR, "HcclGetCommName", "no memory given");
    Communicator *comm = comm_hold(handle, "HcclGetCommName");
    if (!comm) return HCCL_E_PARA;
    memcpy(name, comm->name, sizeof comm->name);
    comm_release(comm);
    return HCCL_SUCCESS;
}

EXPORT HcclResult HcclGetRankSize(HcclComm handle, uint32_t *ranks) {
    if (!ranks) return refuse(HCCL_E_PTR, "HcclGetRankSize", "no memory given");
    Communicator *comm = comm_hold(handle, "HcclGetRankSize");
    if (!comm) return HCCL_E_PARA;
    *ranks = comm->ranks;
    comm_release(comm);
    return HCCL_SUCCESS;
}

EXPORT HcclResult HcclGetRankId(HcclComm handle, uint32_t *rank) {
    if (!rank) return refuse(HCCL_E_PTR, "HcclGetRankId", "no memory given");
    Communicator *comm = comm_hold(handle, "HcclGetRankId");
    if (!comm) return HCCL_E_PARA;
    *rank = comm->rank;
    comm_release(comm);
    return HCCL_SUCCESS;
}

EXPORT HcclResult HcclGetCommAsyncError(HcclComm handle, HcclResult *error) {
    if (!error) return refuse(HCCL_E_PTR, "HcclGetCommAsyncError", "no memory given");
    Communicator *comm = comm_hold(handle, "HcclGetCommAsyncError");
    if (!comm) return HCCL_E_PARA;
    *error = transport_healthy(comm, "HcclGetCommAsyncError");
    comm_release(comm);
    return HCCL_SUCCESS;
}

/* Buffer sizes, algorithms and retries only tune a network; names and timeouts are kept. */
EXPORT uint32_t HcclGetCommConfigCapability(void) { return CONFIG_PARAMETERS; }

EXPORT HcclResult HcclSetConfig(int32_t config, int32_t value) {
    if (config != 0) return refuse(HCCL_E_NOT_SUPPORT, "HcclSetConfig", "unknown setting");
    deterministic = value;
    return HCCL_SUCCESS;
}

EXPORT HcclResult HcclGetConfig(int32_t config, int32_t *value) {
    if (config != 0) return refuse(HCCL_E_NOT_SUPPORT, "HcclGetConfig", "unknown setting");
    if (!value) return refuse(HCCL_E_PTR, "HcclGetConfig", "no memory given");
    *value = deterministic;
    return HCCL_SUCCESS;
}

EXPORT const char *HcclGetErrorString(HcclResult code) {
    switch (code) {
    case HCCL_SUCCESS: return "no error";
    case HCCL_E_PARA: return "wrong parameter, or different calls on different ranks";
    case HCCL_E_PTR: return "missing or wrong pointer";
    case HCCL_E_MEMORY: return "out of memory";
    case HCCL_E_INTERNAL: return "internal error";
    case HCCL_E_NOT_SUPPORT: return "not supported";
    case HCCL_E_UNAVAIL: return "resource unavailable";
    case HCCL_E_SYSCALL: return "a system call failed";
    case HCCL_E_TIMEOUT: return "timeout";
    case HCCL_E_REMOTE: return "a remote rank has ended";
    case HCCL_E_SUSPENDING: return "the communicator was destroyed";
    default: return "unknown error code";
    }
}
