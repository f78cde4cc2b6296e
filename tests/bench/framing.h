/*
 * framing.h - in-place framing by hand: one large recv, then every whole message is looked at where it lies.
 * This is the fastest ordinary way to read small messages from TCP, and what the sink of the send benchmarks does.
 */
#ifndef BENCH_FRAMING_H
#define BENCH_FRAMING_H

#include <stdlib.h>
#include <string.h>

#include "harness.h"

#define FRAMER_RECV_BYTES 65536u

struct framer {
	char *data;
	size_t have; /* unframed bytes at data[0..have], always less than one message after framer_take */
};

static inline void framer_init(struct framer *framer)
{
	framer->data = malloc(FRAMER_RECV_BYTES + WIRE_MSG_MAX_BYTES);
	framer->have = 0;
	if (!framer->data)
		die("malloc");
}

static inline void framer_free(struct framer *framer)
{
	free(framer->data);
}

/* Where the next recv may write FRAMER_RECV_BYTES. */
static inline char *framer_space(const struct framer *framer)
{
	return framer->data + framer->have;
}

/* Counts the messages that `received` further bytes complete and moves the rest to the front. Returns ENDs seen. */
static inline unsigned framer_take(struct framer *framer, size_t received, struct tally *tally)
{
	const char *at = framer->data, *stop = framer->data + framer->have + received;
	unsigned ends = 0;

	while ((size_t)(stop - at) >= WIRE_LEN_BYTES) {
		size_t size = wire_size(at);

		if (size < WIRE_MSG_MIN_BYTES || size > WIRE_MSG_MAX_BYTES)
			die("framing is lost");
		if ((size_t)(stop - at) < size)
			break;
		ends += (unsigned)tally_message(tally, at, size);
		at += size;
	}
	framer->have = (size_t)(stop - at);
	memmove(framer->data, at, framer->have);
	return ends;
}

#endif
