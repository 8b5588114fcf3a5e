// Read bandwidth of this machine right now: N threads sum 96 MiB (what the model's weights take), 40 times;
// prints the best pass in GB/s.  cc -O3 -march=native -pthread bandwidth.c && ./a.out N
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static size_t threads = 1, words; // words of each thread
static uint64_t *memory;
static volatile uint64_t sink;
static pthread_barrier_t barrier;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static double best;

static void *reader(void *argument) {
    size_t thread = (size_t)argument;
    const uint64_t *from = memory + thread * words;
    for (int pass = 0; pass < 40; pass++) {
        pthread_barrier_wait(&barrier);
        double start = now();
        uint64_t sum[8] = {0}; // independent sums, so that additions never wait
        for (size_t i = 0; i < words; i += 8)
            for (int j = 0; j < 8; j++) sum[j] += from[i + j];
        for (int j = 0; j < 8; j++) sink += sum[j];
        pthread_barrier_wait(&barrier);
        double rate = (double)(threads * words) * sizeof(uint64_t) / (now() - start) / 1e9;
        if (thread == 0 && rate > best) best = rate;
    }
    return NULL;
}

int main(int count, char **arguments) {
    if (count > 1) threads = strtoul(arguments[1], NULL, 10);
    words = (96u << 20) / sizeof(uint64_t) / threads / 8 * 8;
    memory = malloc(threads * words * sizeof(uint64_t));
    for (size_t i = 0; i < threads * words; i++) memory[i] = i;
    pthread_t readers[threads];
    pthread_barrier_init(&barrier, NULL, threads);
    for (size_t t = 0; t < threads; t++) pthread_create(&readers[t], NULL, reader, (void *)t);
    for (size_t t = 0; t < threads; t++) pthread_join(readers[t], NULL);
    printf("%.1f\n", best);
    return 0;
}
