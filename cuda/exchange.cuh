// How the GPUs of one engine hand each other numbers: into one another's memory, without flags.
// No kernels here; all_reduce.cu has them.
//
// Every rank has memory that the others write into, three buffers of a slot for each rank, all of
// it EMPTY at first. A number that is there has arrived: whoever waits for it looks until it is no
// longer EMPTY. EMPTY is the bits of -0.0, which nobody sends.
//
//   offset (floats)                         what
//   (buffer * world + from) * slot_floats   what rank `from` has sent; as many as a call has
//
// Calls take the buffers in turn. One of them makes the buffer of the call before EMPTY again,
// which that call has read, all of it: kernels of a stream follow each other. And none of the
// others writes there yet: it would have to be two calls further, for which it needs what this rank
// sends in the next one. So in every call each rank sends something to each other and waits for
// what comes from there; where it has no numbers, a word (greet, and await).
//
// A kernel before that of the call may send for it (the linear whose output is summed): what is
// sent in call n goes to a buffer that has been EMPTY since the receiver's call n - 2, and this
// rank has ended its own n - 1.
//
// Which buffer it is stands in device memory and not in arguments, so that recorded launches go on
// where the ones before have ended. Every block counts calls for itself: the grid is always the
// same.
#pragma once

#include "common.cuh"

namespace qwen::exchange {

constexpr uint32_t MAX_WORLD = 8;
constexpr uint32_t BLOCKS = 64, THREADS = 256;
constexpr uint32_t BUFFERS = 3;
constexpr uint32_t EMPTY = 0x80000000u;

// What a block knows of the calls so far.
struct Calls {
    uint32_t count;       // modulo BUFFERS
    uint32_t slot_floats; // used by the last one
};

// Words that host and devices share, in pinned memory.
struct Shared {
    uint32_t abandoned;         // by the host: some rank will not come any more
    uint32_t failed[MAX_WORLD]; // by a device: it has waited in vain
};

struct Peers {
    float *memory[MAX_WORLD]; //   0  of each rank, as this device sees it
    Calls *calls;             //  64  [BLOCKS]
    uint32_t *has_failed;     //  72  on this device: nothing is waited for any more
    Shared *shared;           //  80
    uint64_t timeout_ns;      //  88  of one wait
    uint32_t rank, world;     //  96
    uint32_t slot_floats;     // 104  of a slot
    uint32_t unused;          // 108
};
static_assert(sizeof(Peers) == 112, "as the host has it");

__device__ inline uint64_t now_ns() {
    uint64_t t;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
    return t;
}

// Waits that do not last for ever: looks at the clock now and then, and at what the host says.
class Patience {
    const Peers &peers;
    uint64_t since = 0;
    uint32_t looks = 0;

    __device__ bool give_up(bool by_itself) {
        *static_cast<volatile uint32_t *>(peers.has_failed) = 1;
        if (by_itself)
            *static_cast<volatile uint32_t *>(&peers.shared->failed[peers.rank]) = 1;
        return false;
    }

  public:
    __device__ explicit Patience(const Peers &peers) : peers(peers) {}
    // Is it worth while to look again?
    __device__ bool lasts() {
        if (++looks % 64 != 0)
            return true;
        if (*static_cast<volatile uint32_t *>(peers.has_failed))
            return false;
        const uint64_t now = now_ns();
        if (since == 0)
            since = now;
        if (now - since > peers.timeout_ns)
            return give_up(true);
        // Host memory is far away.
        if (looks % 1024 == 0 && *static_cast<volatile uint32_t *>(&peers.shared->abandoned))
            return give_up(false);
        return true;
    }
};

// Of VECTOR floats, one after the other.
template <int VECTOR> struct Numbers;

template <> struct Numbers<4> {
    float at[4];
    __device__ static Numbers load(const float *from) {
        const float4 v = *reinterpret_cast<const float4 *>(from);
        return {v.x, v.y, v.z, v.w};
    }
    __device__ void store(float *to) const {
        *reinterpret_cast<float4 *>(to) = make_float4(at[0], at[1], at[2], at[3]);
    }
    // Past the first cache; each number is whole, the four of them need not be of one time.
    __device__ static Numbers look(const float *from) {
        Numbers v;
        asm volatile("ld.relaxed.sys.global.v4.f32 {%0, %1, %2, %3}, [%4];"
                     : "=f"(v.at[0]), "=f"(v.at[1]), "=f"(v.at[2]), "=f"(v.at[3])
                     : "l"(from)
                     : "memory");
        return v;
    }
    __device__ void send(float *to) const {
        asm volatile("st.relaxed.sys.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(at[0]),
                     "f"(at[1]), "f"(at[2]), "f"(at[3])
                     : "memory");
    }
};

template <> struct Numbers<1> {
    float at[1];
    __device__ static Numbers load(const float *from) { return {*from}; }
    __device__ void store(float *to) const { *to = at[0]; }
    __device__ static Numbers look(const float *from) {
        Numbers v;
        asm volatile("ld.relaxed.sys.global.f32 %0, [%1];" : "=f"(v.at[0]) : "l"(from) : "memory");
        return v;
    }
    __device__ void send(float *to) const {
        asm volatile("st.relaxed.sys.global.f32 [%0], %1;" ::"l"(to), "f"(at[0]) : "memory");
    }
};

template <int VECTOR> __device__ inline bool is_whole(const Numbers<VECTOR> &v) {
    bool whole = true;
#pragma unroll
    for (int i = 0; i < VECTOR; i++)
        whole &= __float_as_uint(v.at[i]) != EMPTY;
    return whole;
}

// As it can be sent: -0 is +0.
template <int VECTOR> __device__ inline Numbers<VECTOR> sendable(Numbers<VECTOR> v) {
#pragma unroll
    for (int i = 0; i < VECTOR; i++)
        v.at[i] += 0.0f;
    return v;
}

// What rank `from` sends in call `count` goes here in the memory of rank `of`.
__device__ inline float *slot(const Peers &peers, uint32_t of, uint32_t count, uint32_t from) {
    return peers.memory[of] + uint64_t(count % BUFFERS * peers.world + from) * peers.slot_floats;
}

// Sends `v` to all others in call `count`: they find it at `index` of what comes from here.
template <int VECTOR>
__device__ inline void send(const Peers &peers, uint32_t count, const Numbers<VECTOR> &v,
                            uint64_t index) {
    for (uint32_t peer = 0; peer < peers.world; peer++)
        if (peer != peers.rank)
            v.send(slot(peers, peer, count, peers.rank) + index);
}

// One call of an exchange, as a block has it.
class Call {
    const Peers &peers;
    Calls calls;

  public:
    // After the kernel before.
    __device__ explicit Call(const Peers &peers) : peers(peers), calls(peers.calls[blockIdx.x]) {}

    // Sends `v` to `peer`, who finds it at `index` of what comes from here.
    template <int VECTOR>
    __device__ void send_to(uint32_t peer, const Numbers<VECTOR> &v, uint64_t index) const {
        v.send(slot(peers, peer, calls.count, peers.rank) + index);
    }
    template <int VECTOR> __device__ void send(const Numbers<VECTOR> &v, uint64_t index) const {
        exchange::send(peers, calls.count, v, index);
    }
    // What rank `from` has sent: COUNT times VECTOR, from `index` on. All are looked at together.
    template <int VECTOR, int COUNT>
    __device__ void receive(Numbers<VECTOR> (&v)[COUNT], uint32_t from, uint64_t index,
                            Patience &patience) const {
        const float *at = slot(peers, peers.rank, calls.count, from) + index;
        bool whole;
        do {
            whole = true;
#pragma unroll
            for (int i = 0; i < COUNT; i++)
                v[i] = Numbers<VECTOR>::look(at + i * VECTOR);
#pragma unroll
            for (int i = 0; i < COUNT; i++)
                whole &= is_whole(v[i]);
        } while (!whole && patience.lasts());
    }
    // What TOGETHER ranks from `first` on have sent at `index`, but for this one: all are looked at
    // together, for each look takes its time.
    template <int VECTOR, int COUNT, int TOGETHER>
    __device__ void receive_several(Numbers<VECTOR> (&v)[TOGETHER][COUNT], uint32_t first,
                                    uint64_t index, Patience &patience) const {
        const float *at = slot(peers, peers.rank, calls.count, first) + index;
        const auto sends = [&](uint32_t i) {
            return first + i < peers.world && first + i != peers.rank;
        };
        bool whole;
        do {
            whole = true;
#pragma unroll
            for (int i = 0; i < TOGETHER * COUNT; i++)
                if (sends(i / COUNT))
                    v[i / COUNT][i % COUNT] = Numbers<VECTOR>::look(
                        at + uint64_t(i / COUNT) * peers.slot_floats + i % COUNT * VECTOR);
#pragma unroll
            for (int i = 0; i < TOGETHER * COUNT; i++)
                whole &= !sends(i / COUNT) || is_whole(v[i / COUNT][i % COUNT]);
        } while (!whole && patience.lasts());
    }
    // One thread of all sends a word to `peer`, which has no numbers from here in this call.
    __device__ void greet(uint32_t peer) const {
        if (blockIdx.x == 0 && threadIdx.x == 0)
            send_to(peer, Numbers<1>{0.0f}, 0);
    }
    // One thread of all waits for the word of `peer`.
    __device__ void await(uint32_t peer, Patience &patience) const {
        Numbers<1> word[1];
        if (blockIdx.x == 0 && threadIdx.x == 0)
            receive(word, peer, 0, patience);
    }
    // One thread of a block waits for what `from` has sent at `index`, the others for that thread:
    // where it takes long, few should look.
    __device__ void wait(uint32_t from, uint64_t index, Patience &patience) const {
        Numbers<1> first[1];
        if (threadIdx.x == 0)
            receive(first, from, index, patience);
        __syncthreads();
    }
    // The buffer of the call before is EMPTY again, and this call, in which nobody has sent more
    // than `sent` floats to this rank, is over.
    __device__ void end(uint32_t sent) const {
        const float nothing = __uint_as_float(EMPTY);
        const Numbers<4> empty = {nothing, nothing, nothing, nothing};
        const uint32_t fours = (calls.slot_floats + 3) / 4;
        for (uint32_t peer = 0; peer < peers.world; peer++)
            if (peer != peers.rank) {
                float *from = slot(peers, peers.rank, calls.count + BUFFERS - 1, peer);
                for (uint32_t i = blockIdx.x * THREADS + threadIdx.x; i < fours;
                     i += BLOCKS * THREADS)
                    empty.store(from + i * 4);
            }
        __syncthreads(); // all have read what the first one writes
        if (threadIdx.x == 0)
            peers.calls[blockIdx.x] = {(calls.count + 1) % BUFFERS, sent};
    }
};

// Which of `count` things a block does.
struct Part {
    uint32_t begin, end;
    __device__ explicit Part(uint32_t count) {
        const uint32_t each = (count + BLOCKS - 1) / BLOCKS;
        begin = min(blockIdx.x * each, count);
        end = min(begin + each, count);
    }
};

} // namespace qwen::exchange
