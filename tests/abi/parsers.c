/* SPDX-License-Identifier: MIT */
/*
 * parsers.c - the programs of kcm_parser.h and the answers they owe.
 *
 *     parsers            prints them for another machine to run
 *     parsers kernel     runs them in this kernel and compares
 *
 * Printed lines:
 *     program NAME HEX   8 bytes an instruction, as in struct bpf_insn
 *     case HEX ANSWER    a message's first bytes, and the answer the last program owes
 *
 * Exit status: 0 all agree, 1 one does not, 77 this kernel lets us load no program.
 */
#include "kcm.h"
#include "kcm_parser.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

enum { DATA_MAX = 128, LINK_HEADER = 14, RANDOM_FIELDS = 300, CANNOT_LOAD = 77 };

struct expectation {
	enum kcm_protocol protocol;
	const char *data; /* hex; blanks are ignored */
	int32_t answer;
};

static const char *const protocol_names[] = {
	"dns", "tls", "http2", "memcached", "postgres", "kafka", "mqtt", "sunrpc", "9p", "netstring",
};

static const struct expectation expectations[] = {
	/* Length 29, then an empty header: one byte short, exact, and with a body. */
	{ KCM_PARSER_DNS, "00", 0 },
	{ KCM_PARSER_DNS, "001d", 31 },
	{ KCM_PARSER_DNS, "001d 1234 0100 0001", 31 },
	{ KCM_PARSER_DNS, "000c", 14 },
	{ KCM_PARSER_DNS, "000b", -EBADMSG },
	{ KCM_PARSER_DNS, "0000", -EBADMSG },
	{ KCM_PARSER_DNS, "ffff", 65537 },

	{ KCM_PARSER_TLS, "16 0301 02", 0 },
	{ KCM_PARSER_TLS, "16 0301 0200 01", 517 },
	{ KCM_PARSER_TLS, "17 0303 0000", 5 },
	{ KCM_PARSER_TLS, "17 0303 4800", 18437 },
	{ KCM_PARSER_TLS, "17 0303 4801", -EMSGSIZE },

	{ KCM_PARSER_HTTP2, "000000", 0 },
	{ KCM_PARSER_HTTP2, "000000 04 00 00000000", 9 },
	{ KCM_PARSER_HTTP2, "000012 04 00 00000000", 27 },
	{ KCM_PARSER_HTTP2, "ffffff 00 00 00000001", 16777224 },
	{ KCM_PARSER_HTTP2, "505249", 0 },
	{ KCM_PARSER_HTTP2, "50524920 2a2048", 0 },
	{ KCM_PARSER_HTTP2, "50524920 2a204854 54502f322e300d0a0d0a534d0d0a0d0a", 24 },
	{ KCM_PARSER_HTTP2, "50524920 00000000", 0x505249 + 9 },

	{ KCM_PARSER_MEMCACHED, "80 00 0003 00 00 0000 000000", 0 },
	{ KCM_PARSER_MEMCACHED, "80 00 0003 00 00 0000 00000003", 27 },
	{ KCM_PARSER_MEMCACHED, "80 07 0000 00 00 0000 00000000 00000000", 24 },
	{ KCM_PARSER_MEMCACHED, "80 07 0000 00 00 0000 ffffffff", -EMSGSIZE },
	{ KCM_PARSER_MEMCACHED, "80 07 0000 00 00 0000 7fffffe7", 0x7fffffff },
	{ KCM_PARSER_MEMCACHED, "80 07 0000 00 00 0000 7fffffe8", -EMSGSIZE },

	/* StartupMessage and SSLRequest, then Query and Terminate. */
	{ KCM_PARSER_POSTGRES, "00", 0 },
	{ KCM_PARSER_POSTGRES, "0000 00", 0 },
	{ KCM_PARSER_POSTGRES, "00000029 00030000", 41 },
	{ KCM_PARSER_POSTGRES, "00000008 04d2162f", 8 },
	{ KCM_PARSER_POSTGRES, "00000007", -EBADMSG },
	{ KCM_PARSER_POSTGRES, "00002710", 10000 },
	{ KCM_PARSER_POSTGRES, "00002711", -EMSGSIZE },
	{ KCM_PARSER_POSTGRES, "51", 0 },
	{ KCM_PARSER_POSTGRES, "51 0000000e 73656c", 15 },
	{ KCM_PARSER_POSTGRES, "58 00000004", 5 },
	{ KCM_PARSER_POSTGRES, "58 00000003", -EBADMSG },
	{ KCM_PARSER_POSTGRES, "51 ffffffff", -EMSGSIZE },

	{ KCM_PARSER_KAFKA, "000000", 0 },
	{ KCM_PARSER_KAFKA, "0000001c 0012 0003", 32 },
	{ KCM_PARSER_KAFKA, "00000003", -EBADMSG },
	{ KCM_PARSER_KAFKA, "ffffffff", -EMSGSIZE },

	{ KCM_PARSER_MQTT, "c0", 0 },
	{ KCM_PARSER_MQTT, "c0 00", 2 },
	{ KCM_PARSER_MQTT, "30 7f", 129 },
	{ KCM_PARSER_MQTT, "30 80", 0 },
	{ KCM_PARSER_MQTT, "30 8001", 131 },
	{ KCM_PARSER_MQTT, "30 ff7f", 16386 },
	{ KCM_PARSER_MQTT, "30 808001", 16388 },
	{ KCM_PARSER_MQTT, "30 80808001", 2097157 },
	{ KCM_PARSER_MQTT, "30 ffffff7f", 268435460 },
	{ KCM_PARSER_MQTT, "30 ffffff", 0 },
	{ KCM_PARSER_MQTT, "30 ffffffff", -EBADMSG },

	/* One fragment; an empty last one; two fragments, seen in steps; 16; endless ones. */
	{ KCM_PARSER_SUNRPC, "800000", 0 },
	{ KCM_PARSER_SUNRPC, "80000028 00", 44 },
	{ KCM_PARSER_SUNRPC, "80000000", 4 },
	{ KCM_PARSER_SUNRPC, "00000002 aabb", 0 },
	{ KCM_PARSER_SUNRPC, "00000002 aabb 800000", 0 },
	{ KCM_PARSER_SUNRPC, "00000002 aabb 80000003", 13 },
	{ KCM_PARSER_SUNRPC, "00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000"
			     "00000000 00000000 00000000 00000000 00000000 00000000 00000000 80000001", 65 },
	{ KCM_PARSER_SUNRPC, "00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000"
			     "00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000001", -EMSGSIZE },
	{ KCM_PARSER_SUNRPC, "ffffffff", -EMSGSIZE },
	{ KCM_PARSER_SUNRPC, "fffffffb", 0x7fffffff },
	{ KCM_PARSER_SUNRPC, "7fffffff", -EMSGSIZE },

	{ KCM_PARSER_9P, "130000", 0 },
	{ KCM_PARSER_9P, "13000000 64 ffff", 19 },
	{ KCM_PARSER_9P, "06000000", -EBADMSG },
	{ KCM_PARSER_9P, "00000000", -EBADMSG },
	{ KCM_PARSER_9P, "00000080", -EMSGSIZE },

	/* "0:,"  "5:hello,"  "12:"  "999999999:" and what is none. */
	{ KCM_PARSER_NETSTRING, "30", 0 },
	{ KCM_PARSER_NETSTRING, "30 3a 2c", 3 },
	{ KCM_PARSER_NETSTRING, "35 3a 68656c6c6f 2c", 8 },
	{ KCM_PARSER_NETSTRING, "3132", 0 },
	{ KCM_PARSER_NETSTRING, "3132 3a", 16 },
	{ KCM_PARSER_NETSTRING, "393939393939393939 3a", 1000000010 },
	{ KCM_PARSER_NETSTRING, "39393939393939393939", -EBADMSG },
	{ KCM_PARSER_NETSTRING, "3035 3a", -EBADMSG },
	{ KCM_PARSER_NETSTRING, "3030 3a", -EBADMSG },
	{ KCM_PARSER_NETSTRING, "3a", -EBADMSG },
	{ KCM_PARSER_NETSTRING, "2f", -EBADMSG },
	{ KCM_PARSER_NETSTRING, "31 3b", -EBADMSG },
};

/* Where the programs go: standard output, or this kernel. */
struct lane {
	int in_kernel;
	int fd; /* of the last program */
	unsigned cases, wrong;
};

static void print_hex(const void *data, size_t size)
{
	const uint8_t *byte = (const uint8_t *)data;
	size_t i;

	for (i = 0; i < size; i++)
		printf("%02x", byte[i]);
}

static void offer_program(struct lane *lane, const char *name, const struct kcm_program *program)
{
	static char log[1 << 16];

	if (!lane->in_kernel) {
		printf("program %s ", name);
		print_hex(program->insns, program->count * sizeof program->insns[0]);
		putchar('\n');
		return;
	}
	if (lane->fd >= 0)
		close(lane->fd);
	lane->fd = kcm_parser_load(program, log, sizeof log);
	if (lane->fd >= 0)
		return;
	fprintf(stderr, "BPF_PROG_LOAD %s: %s\n%s", name, strerror(errno), log);
	exit(errno == EPERM || errno == ENOSYS ? CANNOT_LOAD : 1);
}

/* Runs the last program on `data`.  The kernel takes a link header off in front. */
static int32_t run_in_kernel(int fd, const uint8_t *data, size_t size)
{
	uint8_t frame[LINK_HEADER + DATA_MAX];
	union bpf_attr attr;

	memset(frame, 0, LINK_HEADER);
	memcpy(frame + LINK_HEADER, data, size);
	memset(&attr, 0, sizeof attr);
	attr.test.prog_fd = (uint32_t)fd;
	attr.test.data_in = (uint64_t)(uintptr_t)frame;
	attr.test.data_size_in = (uint32_t)(LINK_HEADER + size);
	attr.test.repeat = 1;
	if (syscall(__NR_bpf, BPF_PROG_TEST_RUN, &attr, sizeof attr)) {
		fprintf(stderr, "BPF_PROG_TEST_RUN: %s\n", strerror(errno));
		exit(1);
	}
	return (int32_t)attr.test.retval;
}

static void offer_case(struct lane *lane, const char *name, const uint8_t *data, size_t size, int32_t answer)
{
	int32_t got;

	lane->cases++;
	if (!lane->in_kernel) {
		printf("case ");
		print_hex(data, size);
		printf(" %" PRId32 "\n", answer);
		return;
	}
	got = run_in_kernel(lane->fd, data, size);
	if (got == answer)
		return;
	lane->wrong++;
	printf("%s ", name);
	print_hex(data, size);
	printf(": %" PRId32 ", not %" PRId32 "\n", got, answer);
}

static size_t unhex(const char *text, uint8_t *data)
{
	size_t size = 0;
	unsigned byte;

	while (*text) {
		if (*text == ' ') {
			text++;
			continue;
		}
		sscanf(text, "%2x", &byte);
		data[size++] = (uint8_t)byte;
		text += 2;
	}
	return size;
}

static void offer_protocols(struct lane *lane)
{
	struct kcm_program program;
	uint8_t data[DATA_MAX];
	int protocol = -1;
	size_t i;

	for (i = 0; i < sizeof expectations / sizeof expectations[0]; i++) {
		const struct expectation *e = &expectations[i];

		if ((int)e->protocol != protocol) {
			protocol = (int)e->protocol;
			if (kcm_parser_build(&program, e->protocol)) {
				fprintf(stderr, "kcm_parser_build %s: %s\n", protocol_names[protocol], strerror(errno));
				exit(1);
			}
			offer_program(lane, protocol_names[protocol], &program);
		}
		offer_case(lane, protocol_names[protocol], data, unhex(e->data, data), e->answer);
	}
}

/* A small generator of its own: the same fields on every machine. */
static uint32_t draw(uint64_t *seed)
{
	*seed = *seed * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(*seed >> 32);
}

static struct kcm_length draw_field(uint64_t *seed)
{
	struct kcm_length f;

	f.offset = draw(seed) % 20;
	f.width = 1 + draw(seed) % 4;
	f.order = draw(seed) % 2 ? KCM_LITTLE_ENDIAN : KCM_BIG_ENDIAN;
	f.mask = draw(seed) % 2 ? draw(seed) : 0;
	f.shift = draw(seed) % 2 ? draw(seed) % (f.width * 8) : 0;
	f.adjust = (int32_t)(draw(seed) % 64) - 16;
	f.least = draw(seed) % 2 ? f.offset + f.width + draw(seed) % 64 : 0;
	f.most = draw(seed) % 2 ? 1000 + draw(seed) % 100000 : 0;
	return f;
}

/* The formula of struct kcm_length, said once more without BPF. */
static int32_t expected_length(const struct kcm_length *f, const uint8_t *data, size_t size)
{
	int64_t least = f->least ? f->least : f->offset + f->width;
	int64_t most = f->most ? f->most : 0x7fffffff;
	uint32_t value = 0, i;
	int64_t length;

	if (size < f->offset + f->width)
		return 0;
	for (i = 0; i < f->width; i++) {
		uint32_t place = f->order == KCM_LITTLE_ENDIAN ? i : f->width - 1 - i;

		value |= (uint32_t)data[f->offset + i] << (8 * place);
	}
	length = (int64_t)((value & (f->mask ? f->mask : 0xffffffffu)) >> f->shift) + f->adjust;
	return length < least ? -EBADMSG : length > most ? -EMSGSIZE : (int32_t)length;
}

static void offer_random_fields(struct lane *lane)
{
	uint64_t seed = 41;
	int n, i;

	for (n = 0; n < RANDOM_FIELDS; n++) {
		struct kcm_length field = draw_field(&seed);
		struct kcm_program program;

		if (kcm_parser_build_length(&program, &field)) {
			fprintf(stderr, "kcm_parser_build_length: %s\n", strerror(errno));
			exit(1);
		}
		offer_program(lane, "field", &program);
		for (i = 0; i < 8; i++) {
			uint8_t data[DATA_MAX];
			size_t size = 1 + draw(&seed) % 28, at;

			for (at = 0; at < size; at++) /* small lengths must occur, too */
				data[at] = (uint8_t)(draw(&seed) % 3 ? draw(&seed) : 0);
			offer_case(lane, "field", data, size, expected_length(&field, data, size));
		}
	}
}

/* Descriptions that must be refused. */
static void refuse_nonsense(struct lane *lane)
{
	static const struct kcm_length nonsense[] = {
		{ 0, 0, KCM_BIG_ENDIAN, 0, 0, 0, 0, 0 },
		{ 0, 5, KCM_BIG_ENDIAN, 0, 0, 0, 0, 0 },
		{ KCM_LENGTH_OFFSET_MAX + 1, 1, KCM_BIG_ENDIAN, 0, 0, 0, 0, 0 },
		{ 0xffffffff, 1, KCM_BIG_ENDIAN, 0, 0, 0, 0, 0 },
		{ 0, 2, KCM_BIG_ENDIAN, 0, 16, 0, 0, 0 },
		{ 0, 2, KCM_BIG_ENDIAN, 0, 0, 0, 1, 0 },
		{ 0, 2, KCM_BIG_ENDIAN, 0, 0, 0, 10, 9 },
		{ 0, 2, KCM_BIG_ENDIAN, 0, 0, 0, 0, 0x80000000 },
	};
	struct kcm_program program;
	size_t i;

	for (i = 0; i < sizeof nonsense / sizeof nonsense[0]; i++) {
		errno = 0;
		if (kcm_parser_build_length(&program, &nonsense[i]) != -1 || errno != EINVAL) {
			fprintf(stderr, "nonsense[%zu] was accepted\n", i);
			lane->wrong++;
		}
	}
	if (kcm_parser_build(&program, (enum kcm_protocol)99) != -1 || errno != EINVAL) {
		fprintf(stderr, "protocol 99 was accepted\n");
		lane->wrong++;
	}
}

int main(int argc, char **argv)
{
	struct lane lane = { argc > 1 && strcmp(argv[1], "kernel") == 0, -1, 0, 0 };

	refuse_nonsense(&lane);
	offer_protocols(&lane);
	offer_random_fields(&lane);
	if (lane.in_kernel)
		printf("%u cases, %u wrong\n", lane.cases, lane.wrong);
	return lane.wrong != 0;
}
