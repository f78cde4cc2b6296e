/*
 * wire.h - the messages every benchmark program exchanges.
 *
 * A message is a 4-byte big-endian body length (not counting itself), a connection number, a kind, a sequence number,
 * filler, and a trailer that depends on the sequence number. A receiver looks at both ends of each message, so bytes
 * can be neither skipped nor framed wrongly, and the last message of a connection says how many came before it.
 */
#ifndef BENCH_WIRE_H
#define BENCH_WIRE_H

#include <arpa/inet.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define WIRE_LEN_BYTES 4u           /* the length word itself */
#define WIRE_MSG_MIN_BYTES 32u      /* head and trailer with room to spare */
#define WIRE_MSG_MAX_BYTES 65536u   /* one batch of the source */
#define WIRE_CONNS_MAX 16           /* connections of the throughput runs */
#define WIRE_TRAILER_SALT 0x9e3779b97f4a7c15ull

enum wire_kind { WIRE_DATA = 0, WIRE_END = 1 };

struct wire_head {
	uint32_t body_len_be; /* bytes behind this word */
	uint16_t conn;
	uint16_t kind;
	uint64_t seq;         /* of an END: how many DATA messages this connection carried */
};

/* Writes head and trailer of a `size`-byte message at `at`; the filler stays as it is. */
static inline void wire_fill(void *at, size_t size, uint16_t conn, enum wire_kind kind, uint64_t seq)
{
	struct wire_head head = { htonl((uint32_t)(size - WIRE_LEN_BYTES)), conn, (uint16_t)kind, seq };
	uint64_t trailer = seq ^ WIRE_TRAILER_SALT;

	memcpy(at, &head, sizeof head);
	memcpy((char *)at + size - sizeof trailer, &trailer, sizeof trailer);
}

/* Bytes of the message that starts at `at`, length word included; at least WIRE_LEN_BYTES must be readable. */
static inline size_t wire_size(const void *at)
{
	uint32_t body_len_be;

	memcpy(&body_len_be, at, sizeof body_len_be);
	return (size_t)ntohl(body_len_be) + WIRE_LEN_BYTES;
}

/* What one receiving thread has seen. Tallies add up (tally_merge), so threads share nothing while they run. */
struct tally {
	uint64_t count, seq_sum;                   /* of DATA messages received */
	uint64_t expected_count, expected_seq_sum; /* announced by END messages */
	unsigned ends;                             /* connections that are complete */
	unsigned faults;                           /* messages out of order, of a wrong size or with a wrong trailer */
	uint64_t next_seq[WIRE_CONNS_MAX];
};

/* Checks and counts one message of `size` bytes. Returns 1 for the END of a connection, else 0. */
static inline int tally_message(struct tally *tally, const void *at, size_t size)
{
	struct wire_head head;
	uint64_t trailer;

	memcpy(&head, at, sizeof head);
	memcpy(&trailer, (const char *)at + size - sizeof trailer, sizeof trailer);
	if (__builtin_expect(head.conn >= WIRE_CONNS_MAX || trailer != (head.seq ^ WIRE_TRAILER_SALT) ||
			     ntohl(head.body_len_be) != size - WIRE_LEN_BYTES, 0)) {
		tally->faults++;
		return 0;
	}
	if (__builtin_expect(head.kind == WIRE_END, 0)) {
		tally->expected_count += head.seq;
		tally->expected_seq_sum += head.seq * (head.seq - 1) / 2;
		tally->ends++;
		return 1;
	}
	tally->faults += head.seq < tally->next_seq[head.conn];
	tally->next_seq[head.conn] = head.seq + 1;
	tally->seq_sum += head.seq;
	tally->count++;
	return 0;
}

static inline void tally_merge(struct tally *into, const struct tally *from)
{
	into->count += from->count;
	into->seq_sum += from->seq_sum;
	into->expected_count += from->expected_count;
	into->expected_seq_sum += from->expected_seq_sum;
	into->ends += from->ends;
	into->faults += from->faults;
}

/* Every announced message arrived once, in order, whole. */
static inline int tally_is_complete(const struct tally *tally, unsigned conns)
{
	return tally->ends == conns && tally->faults == 0 && tally->count == tally->expected_count &&
	       tally->seq_sum == tally->expected_seq_sum;
}

#endif
