/*
 * kcm_user.h - opening KCM sockets the way kcm.rst describes; knows nothing of any library beneath. Programs open them
 * after they have started their peer: clones are not close-on-exec, and a multiplexor lives as long as any copy.
 */
#ifndef BENCH_KCM_USER_H
#define BENCH_KCM_USER_H

#include <linux/bpf.h>
#include <linux/kcm.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "harness.h"

/* The parser clang makes of kcm.rst's example: a 4-byte length that does not count itself. Returns its fd. */
static inline int load_parser(void)
{
	struct bpf_insn insns[] = {
		{ .code = BPF_ALU64 | BPF_MOV | BPF_X, .dst_reg = 6, .src_reg = 1 },
		{ .code = BPF_LD | BPF_ABS | BPF_W, .imm = 0 },
		{ .code = BPF_ALU64 | BPF_ADD | BPF_K, .dst_reg = 0, .imm = WIRE_LEN_BYTES },
		{ .code = BPF_JMP | BPF_EXIT },
	};
	union bpf_attr attr = {
		.prog_type = BPF_PROG_TYPE_SOCKET_FILTER,
		.insns = (uintptr_t)insns,
		.insn_cnt = sizeof insns / sizeof insns[0],
		.license = (uintptr_t)"Dual MIT/GPL",
	};
	int fd = (int)syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof attr);

	if (fd < 0)
		die("bpf(BPF_PROG_LOAD)");
	return fd;
}

static inline int kcm_open(void)
{
	int kcm = socket(AF_KCM, SOCK_DGRAM, KCMPROTO_CONNECTED);

	if (kcm < 0)
		die("socket(AF_KCM)");
	return kcm;
}

static inline int kcm_clone(int kcm)
{
	struct kcm_clone clone = { 0 };

	if (ioctl(kcm, SIOCKCMCLONE, &clone) < 0)
		die("SIOCKCMCLONE");
	return clone.fd;
}

static inline void kcm_attach(int kcm, int tcp, int parser)
{
	struct kcm_attach attach = { .fd = tcp, .bpf_fd = parser };

	if (ioctl(kcm, SIOCKCMATTACH, &attach) < 0)
		die("SIOCKCMATTACH");
}

#endif
