/* guest.h: what the lane programs share.
 *
 * A lane program is plain C over libc and runs unchanged on a kernel with kcm.ko and under
 * libkcmshim.so.  It prints a trace: one header line per case, then one indented line per
 * observation, holding nothing that may differ between two runs of the same kernel (no buffer
 * charges, inodes, cookies, descriptor numbers or times).
 */
#ifndef GUEST_H
#define GUEST_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* <linux/kcm.h> by number, so that a lane program needs no header but libc's. */
#ifndef AF_KCM
#define AF_KCM 41
#endif
#ifndef SOL_KCM
#define SOL_KCM 281
#endif
#ifndef MSG_BATCH
#define MSG_BATCH 0x40000
#endif
#define KCMPROTO_CONNECTED 0
#define KCM_RECV_DISABLE 1
#define SIOCKCMATTACH 0x89E0
#define SIOCKCMUNATTACH 0x89E1
#define SIOCKCMCLONE 0x89E2
#define DW MSG_DONTWAIT
#define BAD_PTR ((void *)8)

/* --- cases ------------------------------------------------------------------------------- */

/* S strict, T tolerant verdict: the lanes must agree.  Q kernel quirk, V kernel version: recorded. */
enum case_class { S = 'S', T = 'T', Q = 'Q', V = 'V' };
/* Whether a case runs once or for SOCK_DGRAM and SOCK_SEQPACKET. */
enum case_types { ONCE, BOTH };

struct kcm_case {
	const char *id;
	enum case_class class;
	enum case_types types;
	void (*run)(int type); /* SOCK_DGRAM when the case runs once */
};

int guest_main(int argc, char **argv, const struct kcm_case *cases, size_t case_count);
#define GUEST_MAIN(table)                                                                          \
	int main(int argc, char **argv)                                                                \
	{                                                                                              \
		return guest_main(argc, argv, table, sizeof table / sizeof *table);                        \
	}

/* --- trace lines ------------------------------------------------------------------------- */

void say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* The lane cannot run the case for a stated reason: prints it and ends the case. */
void lane_lacks(const char *what) __attribute__((noreturn));
const char *errno_name(int error);
/* "name = value" or "name = ERRNO"; returns value. */
long report(const char *name, long value);
#define R(call) report(#call, (long)(call))
#define RL(label, call) report(label, (long)(call))
/* As report, but a descriptor is printed as "fd". */
int report_fd(const char *name, int fd);
#define FD(call) report_fd(#call, (call))
/* A short rendering of bytes: runs as c*n, the middle of long data as its hash. */
const char *bytes(const void *data, size_t len);
const char *msg_flags(int flags);
const char *poll_bits(int events);

/* --- sockets ----------------------------------------------------------------------------- */

struct pair {
	int a, p; /* the end that gets attached, and its peer */
};

/* This lane's TCP connections are the stack's: its addresses are in the environment. */
int on_stack(void);
/* Puts the address at which this process reaches itself, port 0, at addr; returns its length. */
socklen_t own_address(int family, void *addr);
int kcm(int type);
int attach(int kcm_fd, int tcp_fd, int bpf_fd);
int unattach(int kcm_fd, int tcp_fd);
int clone_kcm(int kcm_fd);
struct pair pair(void);
struct pair pair6(void);
/* The smallest buffers on the way from a to p, so that a few kilobytes fill it. */
struct pair pair_small(void);
struct pair attached(int kcm_fd, int bpf_fd);
struct pair attached_small(int kcm_fd, int bpf_fd);
void reset(int fd); /* closes with RST */
int set_int(int fd, int level, int name, int value);
int get_int(int fd, int level, int name); /* -1 and errno */
int set_timeout(int fd, int name, int ms);
int recv_disable(int kcm_fd, int on);
int take_so_error(int fd);
void so_error(const char *name, int fd);
void polls(const char *name, int fd);
#define SO_ERR(fd) so_error(#fd, fd)
#define POLLS(fd) polls(#fd, fd)

/* --- parser programs --------------------------------------------------------------------- */

#define INSN(c, d, s, o, i)                                                                        \
	((struct bpf_insn){.code = (c), .dst_reg = (d), .src_reg = (s), .off = (o), .imm = (i)})
#define MOV_R(d, s) INSN(BPF_ALU64 | BPF_MOV | BPF_X, d, s, 0, 0)
#define MOV_I(d, i) INSN(BPF_ALU64 | BPF_MOV | BPF_K, d, 0, 0, i)
#define ADD_I(d, i) INSN(BPF_ALU64 | BPF_ADD | BPF_K, d, 0, 0, i)
#define LD_CTX(d, s, o) INSN(BPF_LDX | BPF_W | BPF_MEM, d, s, o, 0)
#define LDX_B(d, s, o) INSN(BPF_LDX | BPF_B | BPF_MEM, d, s, o, 0)
#define STX_W(d, o, s) INSN(BPF_STX | BPF_W | BPF_MEM, d, s, o, 0)
#define LD_ABS_W(i) INSN(BPF_LD | BPF_ABS | BPF_W, 0, 0, 0, i)
#define LD_IMM64_LO(d, i) INSN(BPF_LD | BPF_DW | BPF_IMM, d, 0, 0, i)
#define LD_IMM64_HI(i) INSN(0, 0, 0, 0, i)
#define CALL(f) INSN(BPF_JMP | BPF_CALL, 0, 0, 0, f)
#define JEQ_I(d, i, o) INSN(BPF_JMP | BPF_JEQ | BPF_K, d, 0, o, i)
#define JNE_I(d, i, o) INSN(BPF_JMP | BPF_JNE | BPF_K, d, 0, o, i)
#define JGE_I(d, i, o) INSN(BPF_JMP | BPF_JGE | BPF_K, d, 0, o, i)
#define EXIT INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0)

int load_typed(enum bpf_prog_type type, const struct bpf_insn *insns, size_t count);
#define LOAD(insns) load_typed(BPF_PROG_TYPE_SOCKET_FILTER, insns, sizeof insns / sizeof *insns)
int prog_p4(void);         /* big-endian word at 0, plus 4 */
int prog_raw(void);        /* big-endian word at 0 */
int prog_const(int value); /* a constant */
int prog_len(void);        /* the context's len */
int prog_load_bytes(void); /* skb_load_bytes(0, 4): 0 when short, else byte 3 */

/* --- traffic ----------------------------------------------------------------------------- */

/* Waits in poll(2) on every KCM socket of this process: as a receiver does that keeps up. */
void nap(int ms);
/* Waits for events on one descriptor; 0 on timeout. */
int ready(int fd, int events, int ms);
/* Writes one P4 message of `payload` bytes `c` and lets it be parsed alone. */
void msg(int peer, size_t payload, char c);
/* Writes raw bytes and lets them be parsed alone. */
void put(int peer, const void *data, size_t len);
#define PUT(peer, literal) put(peer, literal, sizeof(literal) - 1)
/* Builds a P4 message; returns its length. */
size_t p4(void *to, size_t payload, char c);

/* recvmsg on a KCM socket that should have a message (waits for it), or should not. */
int rx(int fd, size_t cap, int flags);
int rx_none(int fd);
/* First payload bytes of everything queued on a KCM socket of P4 messages, one letter each. */
void letters(const char *name, int fd, int count);
#define LETTERS(fd, count) letters(#fd, fd, count)
/* Reads `want` bytes from a TCP socket and whatever else shows up, then prints them. */
size_t drain_as(const char *name, int fd, size_t want);
#define drain(fd, want) drain_as(#fd, fd, want)
/* As drain, without printing; returns bytes read into buf. */
size_t collect(int fd, void *buf, size_t cap, size_t want);
/* Reads and checks `len` bytes of the pattern that fill() makes. */
void fill(void *data, size_t len, unsigned seed);
int filled(const void *data, size_t len, unsigned seed);

extern volatile sig_atomic_t sigpipe_count;
long now_ms(void);
int in_range(long value, long low, long high);
/* Interrupts the main thread with SIGUSR1 (handler installed with sa_flags) every ms, until over. */
void signal_after(int ms, int sa_flags);
void signal_over(void);
pthread_t spawn(void *(*body)(void *), void *arg);
int open_fd_count(void);

#endif
