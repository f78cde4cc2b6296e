/* SPDX-License-Identifier: MIT */
/*
 * kcm_parser.h - message parsers for AF_KCM, without clang and without libbpf.
 *
 * KCM finds the messages in a TCP stream by running a BPF program at the start
 * of each.  The program answers with the whole length of the message in bytes,
 * with 0 for "I need more bytes to tell", or with a negative errno, which stops
 * the connection and appears as SO_ERROR on its TCP socket.
 *
 *     int bpf_fd = kcm_parser_open(KCM_PARSER_DNS);
 *
 *     // 16-bit little-endian length at offset 2, not counting its 4-byte header
 *     struct kcm_length field = { 2, 2, KCM_LITTLE_ENDIAN, 0, 0, 4, 0, 0 };
 *     int bpf_fd = kcm_parser_open_length(&field);
 *
 * Both return a program descriptor for struct kcm_attach, or -1 with errno set:
 * EINVAL for a field that makes no sense, else what bpf(2) said (EPERM without
 * CAP_BPF).  One descriptor serves any number of connections and may be closed
 * once they are attached.
 *
 * Every parser made here refuses instead of guessing.  A length too short to
 * hold its own header ends with EBADMSG: returned as it is, 0 would read as
 * "need more" and swallow the stream.  One past the limit ends with EMSGSIZE:
 * the sum is formed in 64 bits, so that ffffffff plus a header does not wrap to
 * a small number.  KCM has a limit of its own below that, the SO_RCVBUF of the
 * TCP socket.
 *
 * Needs <linux/bpf.h>.  C99 and C++.  The programs use nothing newer than
 * Linux 4.6, the first kernel with KCM.
 */
#ifndef KCMSHIM_KCM_PARSER_H
#define KCMSHIM_KCM_PARSER_H

#include <errno.h>
#include <linux/bpf.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef __cplusplus
extern "C" {
#else
/* <unistd.h> hides it under -std=c99; C++ compilers always ask for it. */
extern long syscall(long number, ...);
#endif

/* ---- What to parse ---------------------------------------------------- */

enum kcm_byte_order { KCM_BIG_ENDIAN, KCM_LITTLE_ENDIAN };

/*
 * Where a message says how long it is:
 *
 *     message length = ((field & mask) >> shift) + adjust
 */
struct kcm_length {
	uint32_t offset;           /* bytes before the field, at most KCM_LENGTH_OFFSET_MAX */
	uint32_t width;            /* bytes of the field: 1, 2, 3 or 4 */
	enum kcm_byte_order order; /* of the field */
	uint32_t mask;             /* its bits that count; 0: all of them */
	uint32_t shift;            /* bits to drop at the low end, after the mask */
	int32_t adjust;            /* bytes of the message that the field does not count */
	uint32_t least;            /* shortest legal message in bytes; 0: up to the field's end */
	uint32_t most;             /* longest legal message in bytes; 0: 2^31 - 1 */
};

/* Headers are short; an offset beyond this is a mistake in the description. */
#define KCM_LENGTH_OFFSET_MAX 65536u

/* The length travels as the positive half of a 32-bit number. */
#define KCM_MESSAGE_MAX 0x7fffffffu

enum kcm_protocol {
	KCM_PARSER_DNS,       /* DNS over TCP, RFC 1035 4.2.2: 16-bit length before each message */
	KCM_PARSER_TLS,       /* TLS records, RFC 8446 5.1: KCM messages are records */
	KCM_PARSER_HTTP2,     /* HTTP/2 frames, RFC 9113 4.1; the client's preface is one message of 24 bytes */
	KCM_PARSER_MEMCACHED, /* memcached binary protocol: 24-byte header, body length at 8 */
	KCM_PARSER_POSTGRES,  /* PostgreSQL v3, see kcm_build_postgres() for the start-up packet */
	KCM_PARSER_KAFKA,     /* Kafka: 32-bit size before each request and response */
	KCM_PARSER_MQTT,      /* MQTT control packets: variable-length size of 1 to 4 bytes */
	KCM_PARSER_SUNRPC,    /* ONC RPC record marking, RFC 5531 11: KCM messages are whole records */
	KCM_PARSER_9P,        /* 9P2000: 32-bit little-endian size that counts itself */
	KCM_PARSER_NETSTRING  /* netstrings, "5:hello,": decimal length of up to 9 digits */
};

/* ---- Assembling a program --------------------------------------------- */

/* The longest program here has 134 instructions (ONC RPC). */
#define KCM_PROGRAM_MAX 192u

struct kcm_program {
	struct bpf_insn insns[KCM_PROGRAM_MAX];
	unsigned count;
};

static inline void kcm_emit(struct kcm_program *p, int code, int dst, int src, int jump, int32_t imm)
{
	struct bpf_insn *insn = &p->insns[p->count++];

	memset(insn, 0, sizeof *insn);
	insn->code = (uint8_t)code;
	insn->dst_reg = (uint8_t)(dst & 15);
	insn->src_reg = (uint8_t)(src & 15);
	insn->off = (int16_t)jump;
	insn->imm = imm;
}

/* The opcodes in use.  ALU32 results are zero-extended to 64 bits. */
enum {
	KCM_MOV_REG = BPF_ALU64 | BPF_MOV | BPF_X,
	KCM_MOV = BPF_ALU64 | BPF_MOV | BPF_K,
	KCM_ADD_REG = BPF_ALU64 | BPF_ADD | BPF_X,
	KCM_ADD = BPF_ALU64 | BPF_ADD | BPF_K,
	KCM_MUL = BPF_ALU64 | BPF_MUL | BPF_K,
	KCM_OR_REG = BPF_ALU64 | BPF_OR | BPF_X,
	KCM_SHIFT_LEFT = BPF_ALU64 | BPF_LSH | BPF_K,
	KCM_AND32 = BPF_ALU | BPF_AND | BPF_K,
	KCM_SHIFT_RIGHT32 = BPF_ALU | BPF_RSH | BPF_K,
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	KCM_SWAP = BPF_ALU | BPF_END | BPF_TO_BE, /* the host's order to the other one */
#else
	KCM_SWAP = BPF_ALU | BPF_END | BPF_TO_LE,
#endif
	KCM_JUMP_EQUAL = BPF_JMP | BPF_JEQ | BPF_K,
	KCM_JUMP_NOT_EQUAL = BPF_JMP | BPF_JNE | BPF_K,
	KCM_JUMP_BITS = BPF_JMP | BPF_JSET | BPF_K,
	KCM_JUMP_ABOVE = BPF_JMP | BPF_JGT | BPF_K,    /* unsigned */
	KCM_JUMP_GREATER = BPF_JMP | BPF_JSGT | BPF_K, /* signed, as is the next */
	KCM_JUMP_AT_LEAST = BPF_JMP | BPF_JSGE | BPF_K,
	KCM_EXIT = BPF_JMP | BPF_EXIT
};

/* r0 is the answer and where a load lands; r7, r8 survive a load; r6 holds the context. */
enum { KCM_R0 = 0, KCM_R1 = 1, KCM_R6 = 6, KCM_R7 = 7, KCM_R8 = 8 };

/*
 * Every program opens with this: packet loads take the context from r6, and the
 * verifier refuses them before r6 holds it.
 */
static inline void kcm_begin(struct kcm_program *p)
{
	p->count = 0;
	kcm_emit(p, KCM_MOV_REG, KCM_R6, KCM_R1, 0, 0);
}

/*
 * r0 = 1, 2 or 4 bytes at `offset`, most significant first.  If the message has
 * not arrived that far, the program ends here with 0: "need more".
 */
static inline void kcm_load(struct kcm_program *p, unsigned width, uint32_t offset)
{
	int size = width == 1 ? BPF_B : width == 2 ? BPF_H : BPF_W;

	kcm_emit(p, BPF_LD | BPF_ABS | size, 0, 0, 0, (int32_t)offset);
}

/* if (reg <op> imm) goto a place not known yet.  Returns the jump, for kcm_land(). */
static inline unsigned kcm_jump(struct kcm_program *p, int code, int reg, int32_t imm)
{
	kcm_emit(p, code, reg, 0, 0, imm);
	return p->count - 1;
}

/* The jump goes to the next instruction. */
static inline void kcm_land(struct kcm_program *p, unsigned jump)
{
	p->insns[jump].off = (int16_t)(p->count - jump - 1);
}

/* return value; */
static inline void kcm_return(struct kcm_program *p, int32_t value)
{
	kcm_emit(p, KCM_MOV, KCM_R0, 0, 0, value);
	kcm_emit(p, KCM_EXIT, 0, 0, 0, 0);
}

/* return r0, or -EBADMSG where it is below `least`, or -EMSGSIZE where above `most`; */
static inline void kcm_return_between(struct kcm_program *p, uint32_t least, uint32_t most)
{
	unsigned long_enough, too_long;

	long_enough = kcm_jump(p, KCM_JUMP_AT_LEAST, KCM_R0, (int32_t)least);
	kcm_return(p, -EBADMSG);
	kcm_land(p, long_enough);
	too_long = kcm_jump(p, KCM_JUMP_GREATER, KCM_R0, (int32_t)most);
	kcm_emit(p, KCM_EXIT, 0, 0, 0, 0);
	kcm_land(p, too_long);
	kcm_return(p, -EMSGSIZE);
}

/* r0 = the field as a number. */
static inline void kcm_load_field(struct kcm_program *p, const struct kcm_length *f)
{
	int little = f->order == KCM_LITTLE_ENDIAN;

	if (f->width != 3) {
		kcm_load(p, f->width, f->offset);
		if (little && f->width > 1)
			kcm_emit(p, KCM_SWAP, KCM_R0, 0, 0, (int32_t)(f->width * 8));
		return;
	}
	kcm_load(p, 2, f->offset); /* bytes 0 and 1, then byte 2 */
	if (little)
		kcm_emit(p, KCM_SWAP, KCM_R0, 0, 0, 16);
	else
		kcm_emit(p, KCM_SHIFT_LEFT, KCM_R0, 0, 0, 8);
	kcm_emit(p, KCM_MOV_REG, KCM_R7, KCM_R0, 0, 0);
	kcm_load(p, 1, f->offset + 2);
	if (little)
		kcm_emit(p, KCM_SHIFT_LEFT, KCM_R0, 0, 0, 16);
	kcm_emit(p, KCM_OR_REG, KCM_R0, KCM_R7, 0, 0);
}

/* Appends the parser `f` describes.  Returns 0, or -1 and EINVAL if it describes none. */
static inline int kcm_append_length(struct kcm_program *p, const struct kcm_length *f)
{
	uint32_t least = f->least ? f->least : f->offset + f->width;
	uint32_t most = f->most ? f->most : KCM_MESSAGE_MAX;

	if (f->width < 1 || f->width > 4 || f->offset > KCM_LENGTH_OFFSET_MAX ||
	    f->shift >= f->width * 8 || least < f->offset + f->width || most < least ||
	    most > KCM_MESSAGE_MAX) {
		errno = EINVAL;
		return -1;
	}
	kcm_load_field(p, f);
	if (f->mask)
		kcm_emit(p, KCM_AND32, KCM_R0, 0, 0, (int32_t)f->mask);
	if (f->shift)
		kcm_emit(p, KCM_SHIFT_RIGHT32, KCM_R0, 0, 0, (int32_t)f->shift);
	if (f->adjust)
		kcm_emit(p, KCM_ADD, KCM_R0, 0, 0, f->adjust);
	kcm_return_between(p, least, most);
	return 0;
}

/* ---- Protocols a single field does not describe ------------------------ */

/*
 * A client speaks first, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", outside any frame.
 * Read as a frame header it would announce 5 MiB of an unassigned type, so the
 * first eight bytes tell the two apart.
 */
static inline void kcm_build_http2(struct kcm_program *p)
{
	const struct kcm_length frame = { 0, 3, KCM_BIG_ENDIAN, 0, 0, 9, 9, 0 };
	unsigned not_pri, not_star;

	kcm_begin(p);
	kcm_load(p, 4, 0);
	not_pri = kcm_jump(p, KCM_JUMP_NOT_EQUAL, KCM_R0, 0x50524920); /* "PRI " */
	kcm_load(p, 4, 4);
	not_star = kcm_jump(p, KCM_JUMP_NOT_EQUAL, KCM_R0, 0x2a204854); /* "* HT" */
	kcm_return(p, 24);
	kcm_land(p, not_pri);
	kcm_land(p, not_star);
	kcm_append_length(p, &frame);
}

/*
 * Messages are a type letter and a 32-bit length that counts itself.  A client's
 * first packet (StartupMessage, SSLRequest, GSSENCRequest, CancelRequest) has no
 * letter: it begins with the length.  The server allows it 10000 bytes, so its
 * first byte is 0, which no letter is.  The server's answer to SSLRequest is one
 * bare byte; a client that asks for TLS attaches after reading it.
 */
static inline void kcm_build_postgres(struct kcm_program *p)
{
	const struct kcm_length startup = { 0, 4, KCM_BIG_ENDIAN, 0, 0, 0, 8, 10000 };
	const struct kcm_length message = { 1, 4, KCM_BIG_ENDIAN, 0, 0, 1, 5, 0 };
	unsigned typed;

	kcm_begin(p);
	kcm_load(p, 1, 0);
	typed = kcm_jump(p, KCM_JUMP_NOT_EQUAL, KCM_R0, 0);
	kcm_append_length(p, &startup);
	kcm_land(p, typed);
	kcm_append_length(p, &message);
}

/* Seven bits a byte, least significant first, from byte 1; a fifth byte is an error. */
static inline void kcm_build_mqtt(struct kcm_program *p)
{
	unsigned more;
	int i;

	kcm_begin(p);
	kcm_emit(p, KCM_MOV, KCM_R7, 0, 0, 0);
	for (i = 0; i < 4; i++) {
		kcm_load(p, 1, (uint32_t)(1 + i));
		kcm_emit(p, KCM_MOV_REG, KCM_R8, KCM_R0, 0, 0);
		kcm_emit(p, KCM_AND32, KCM_R8, 0, 0, 0x7f);
		kcm_emit(p, KCM_SHIFT_LEFT, KCM_R8, 0, 0, 7 * i);
		kcm_emit(p, KCM_OR_REG, KCM_R7, KCM_R8, 0, 0);
		more = kcm_jump(p, KCM_JUMP_BITS, KCM_R0, 0x80);
		kcm_emit(p, KCM_MOV_REG, KCM_R0, KCM_R7, 0, 0);
		kcm_emit(p, KCM_ADD, KCM_R0, 0, 0, 2 + i);
		kcm_emit(p, KCM_EXIT, 0, 0, 0, 0);
		kcm_land(p, more);
	}
	kcm_return(p, -EBADMSG);
}

/* Fragments of one record; senders use one, and a loop would need Linux 5.3. */
#define KCM_SUNRPC_FRAGMENTS_MAX 16

/*
 * A record is a run of fragments, each behind a 32-bit word: the top bit marks
 * the last one, the rest is its length.  Walks from word to word, so that KCM
 * delivers a record whole, its words included.
 */
static inline void kcm_build_sunrpc(struct kcm_program *p)
{
	unsigned last[KCM_SUNRPC_FRAGMENTS_MAX], too_long[KCM_SUNRPC_FRAGMENTS_MAX];
	int i;

	kcm_begin(p);
	kcm_emit(p, KCM_MOV, KCM_R7, 0, 0, 0); /* offset of the next word */
	for (i = 0; i < KCM_SUNRPC_FRAGMENTS_MAX; i++) {
		kcm_emit(p, BPF_LD | BPF_IND | BPF_W, 0, KCM_R7, 0, 0);
		kcm_emit(p, KCM_MOV_REG, KCM_R8, KCM_R0, 0, 0);
		kcm_emit(p, KCM_AND32, KCM_R8, 0, 0, 0x7fffffff);
		kcm_emit(p, KCM_ADD, KCM_R7, 0, 0, 4);
		kcm_emit(p, KCM_ADD_REG, KCM_R7, KCM_R8, 0, 0);
		too_long[i] = kcm_jump(p, KCM_JUMP_GREATER, KCM_R7, (int32_t)KCM_MESSAGE_MAX);
		kcm_emit(p, KCM_SHIFT_RIGHT32, KCM_R0, 0, 0, 31);
		last[i] = kcm_jump(p, KCM_JUMP_NOT_EQUAL, KCM_R0, 0);
	}
	for (i = 0; i < KCM_SUNRPC_FRAGMENTS_MAX; i++)
		kcm_land(p, too_long[i]);
	kcm_return(p, -EMSGSIZE);
	for (i = 0; i < KCM_SUNRPC_FRAGMENTS_MAX; i++)
		kcm_land(p, last[i]);
	kcm_emit(p, KCM_MOV_REG, KCM_R0, KCM_R7, 0, 0);
	kcm_emit(p, KCM_EXIT, 0, 0, 0, 0);
}

/* No leading zeros, as the format asks; the comma is the receiver's to check. */
#define KCM_NETSTRING_DIGITS_MAX 9

static inline void kcm_build_netstring(struct kcm_program *p)
{
	unsigned digit, padded = 0;
	unsigned bad[KCM_NETSTRING_DIGITS_MAX];
	int i;

	kcm_begin(p);
	kcm_load(p, 1, 0);
	kcm_emit(p, KCM_MOV, KCM_R7, 0, 0, 0);
	for (i = 0; i < KCM_NETSTRING_DIGITS_MAX; i++) {
		kcm_emit(p, KCM_ADD, KCM_R0, 0, 0, -'0');
		bad[i] = kcm_jump(p, KCM_JUMP_ABOVE, KCM_R0, 9);
		kcm_emit(p, KCM_MUL, KCM_R7, 0, 0, 10);
		kcm_emit(p, KCM_ADD_REG, KCM_R7, KCM_R0, 0, 0);
		kcm_load(p, 1, (uint32_t)i + 1);
		digit = kcm_jump(p, KCM_JUMP_NOT_EQUAL, KCM_R0, ':');
		kcm_emit(p, KCM_MOV_REG, KCM_R0, KCM_R7, 0, 0);
		kcm_emit(p, KCM_ADD, KCM_R0, 0, 0, i + 3); /* i + 1 digits, colon, comma */
		kcm_emit(p, KCM_EXIT, 0, 0, 0, 0);
		kcm_land(p, digit);
		if (i == 0)
			padded = kcm_jump(p, KCM_JUMP_EQUAL, KCM_R7, 0);
	}
	kcm_land(p, padded);
	for (i = 0; i < KCM_NETSTRING_DIGITS_MAX; i++)
		kcm_land(p, bad[i]);
	kcm_return(p, -EBADMSG);
}

/* ---- The calls --------------------------------------------------------- */

/* Builds the parser `f` describes.  Returns 0, or -1 and EINVAL. */
static inline int kcm_parser_build_length(struct kcm_program *p, const struct kcm_length *f)
{
	kcm_begin(p);
	return kcm_append_length(p, f);
}

/* Builds the parser of a protocol.  Returns 0, or -1 and EINVAL for an unknown one. */
static inline int kcm_parser_build(struct kcm_program *p, enum kcm_protocol protocol)
{
	/* A DNS header is 12 bytes, a TLS record body at most 2^14 + 2048 (TLS 1.2). */
	const struct kcm_length dns = { 0, 2, KCM_BIG_ENDIAN, 0, 0, 2, 14, 0 };
	const struct kcm_length tls = { 3, 2, KCM_BIG_ENDIAN, 0, 0, 5, 0, 5 + 16384 + 2048 };
	const struct kcm_length memcached = { 8, 4, KCM_BIG_ENDIAN, 0, 0, 24, 24, 0 };
	const struct kcm_length kafka = { 0, 4, KCM_BIG_ENDIAN, 0, 0, 4, 8, 0 };
	const struct kcm_length nine_p = { 0, 4, KCM_LITTLE_ENDIAN, 0, 0, 0, 7, 0 };

	switch (protocol) {
	case KCM_PARSER_DNS:
		return kcm_parser_build_length(p, &dns);
	case KCM_PARSER_TLS:
		return kcm_parser_build_length(p, &tls);
	case KCM_PARSER_MEMCACHED:
		return kcm_parser_build_length(p, &memcached);
	case KCM_PARSER_KAFKA:
		return kcm_parser_build_length(p, &kafka);
	case KCM_PARSER_9P:
		return kcm_parser_build_length(p, &nine_p);
	case KCM_PARSER_HTTP2:
		kcm_build_http2(p);
		return 0;
	case KCM_PARSER_POSTGRES:
		kcm_build_postgres(p);
		return 0;
	case KCM_PARSER_MQTT:
		kcm_build_mqtt(p);
		return 0;
	case KCM_PARSER_SUNRPC:
		kcm_build_sunrpc(p);
		return 0;
	case KCM_PARSER_NETSTRING:
		kcm_build_netstring(p);
		return 0;
	}
	errno = EINVAL;
	return -1;
}

/* The kernel answers EAGAIN when a signal interrupts its verifier. */
#define KCM_LOAD_TRIES_MAX 5

/*
 * Loads a program.  Returns its descriptor, close-on-exec, or -1 and errno.
 * Where `log` is not NULL, the verifier's words end up there.
 */
static inline int kcm_parser_load(const struct kcm_program *p, char *log, size_t log_size)
{
	static const char license[] = "Dual MIT/GPL";
	union bpf_attr attr;
	int tries, fd = -1;

	memset(&attr, 0, sizeof attr);
	attr.prog_type = BPF_PROG_TYPE_SOCKET_FILTER;
	attr.insns = (uint64_t)(uintptr_t)p->insns;
	attr.insn_cnt = p->count;
	attr.license = (uint64_t)(uintptr_t)license;
	if (log) {
		attr.log_buf = (uint64_t)(uintptr_t)log;
		attr.log_size = (uint32_t)log_size;
		attr.log_level = 1;
	}
	for (tries = 0; tries < KCM_LOAD_TRIES_MAX; tries++) {
		fd = (int)syscall(__NR_bpf, BPF_PROG_LOAD, &attr, sizeof attr);
		if (fd >= 0 || errno != EAGAIN)
			break;
	}
	return fd;
}

/* The descriptor of a parser for `protocol`, or -1 and errno. */
static inline int kcm_parser_open(enum kcm_protocol protocol)
{
	struct kcm_program program;

	if (kcm_parser_build(&program, protocol))
		return -1;
	return kcm_parser_load(&program, NULL, 0);
}

/* The descriptor of a parser for `f`, or -1 and errno. */
static inline int kcm_parser_open_length(const struct kcm_length *f)
{
	struct kcm_program program;

	if (kcm_parser_build_length(&program, f))
		return -1;
	return kcm_parser_load(&program, NULL, 0);
}

#ifdef __cplusplus
}
#endif

#endif /* KCMSHIM_KCM_PARSER_H */
