/* bpf_calls.c: bpf(2) as loaders use it: programs, maps, logs, questions. One argument says what the
 * kernel is like: "as-is" for the rights there are, "ordinary" for none, or a filter of this process
 * answers "EPERM" or "ENOSYS" to bpf(2). */
#include "check.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>

static long bpf(int command, union bpf_attr *attr)
{
	return syscall(SYS_bpf, command, attr, sizeof *attr);
}

static int map_create(enum bpf_map_type type, unsigned key, unsigned value, unsigned entries)
{
	union bpf_attr attr = {.map_type = type, .key_size = key, .value_size = value, .max_entries = entries};
	strcpy(attr.map_name, "a_map");
	return (int)bpf(BPF_MAP_CREATE, &attr);
}

static long element(int command, int map, const void *key, void *value, uint64_t flags)
{
	union bpf_attr attr = {.map_fd = (unsigned)map, .key = (uintptr_t)key};
	attr.value = (uintptr_t)value;
	attr.flags = flags;
	return bpf(command, &attr);
}

static uint64_t value_of(int map, unsigned key)
{
	uint64_t value = ~0ULL;
	CHECK(element(BPF_MAP_LOOKUP_ELEM, map, &key, &value, 0) == 0);
	return value;
}

static int set(int map, unsigned key, uint64_t value, uint64_t flags)
{
	return (int)element(BPF_MAP_UPDATE_ELEM, map, &key, &value, flags);
}

/* Counts its runs in element 0 and answers what element 1 says. */
#define COUNTING(map)                                                                              \
	{                                                                                              \
		INSN(BPF_ST | BPF_MEM | BPF_W, 10, 0, -4, 0), INSN(BPF_LD | BPF_DW | BPF_IMM, 1, 1, 0, map), \
			LD_IMM64_HI(0), MOV_R(2, 10), ADD_I(2, -4), CALL(1), JEQ_I(0, 0, 2), MOV_I(1, 1),      \
			INSN(BPF_STX | BPF_ATOMIC | BPF_DW, 0, 1, 0, BPF_ADD),                                 \
			INSN(BPF_ST | BPF_MEM | BPF_W, 10, 0, -4, 1),                                          \
			INSN(BPF_LD | BPF_DW | BPF_IMM, 1, 1, 0, map), LD_IMM64_HI(0), MOV_R(2, 10),           \
			ADD_I(2, -4), CALL(1), JEQ_I(0, 0, 2), LDX_B(0, 0, 0), EXIT, MOV_I(0, 0), EXIT,        \
	}

static void maps(enum bpf_map_type type)
{
	int map = map_create(type, 4, 8, 4);
	CHECK(map >= 0);
	int early_dup = fcntl(map, F_DUPFD_CLOEXEC, 50);
	if (type == BPF_MAP_TYPE_HASH) {
		unsigned key = 0;
		CHECK(set(map, 0, 0, BPF_NOEXIST) == 0);
		FAILS(set(map, 0, 0, BPF_NOEXIST), EEXIST);
		key = 3;
		FAILS(element(BPF_MAP_DELETE_ELEM, map, &key, NULL, 0), ENOENT);
	}
	CHECK(set(map, 1, 6, 0) == 0);
	struct bpf_insn insns[] = COUNTING(map);
	int program = LOAD(insns);
	CHECK(program >= 0);
	int k = kcm(SOCK_SEQPACKET);
	struct pair ends = attached(k, program);
	char buf[64];
	CHECK(write(ends.p, "sixsix", 6) == 6);
	CHECK(ready(k, POLLIN, 10000) && recv(k, buf, 64, 0) == 6);
	/* What the program wrote, by every name of the map; what is written now, the program sees. */
	CHECK(value_of(map, 0) >= 1);
	CHECK(value_of(early_dup, 0) == value_of(map, 0));
	CHECK(set(early_dup, 1, 5, BPF_EXIST) == 0 && value_of(map, 1) == 5);
	int late_dup = dup(map);
	CHECK(value_of(late_dup, 1) == 5);
	unsigned key = ~0U, next = ~0U;
	CHECK(element(BPF_MAP_GET_NEXT_KEY, map, &key, &next, 0) == 0);
	if (type == BPF_MAP_TYPE_HASH) {
		key = 1;
		FAILS(set(map, 0, 0, BPF_NOEXIST), EEXIST);
		FAILS(set(map, 3, 0, BPF_EXIST), ENOENT);
		CHECK(set(map, 3, 9, BPF_NOEXIST) == 0 && value_of(map, 3) == 9);
		key = 3;
		CHECK(element(BPF_MAP_DELETE_ELEM, map, &key, NULL, 0) == 0);
		uint64_t value;
		FAILS(element(BPF_MAP_LOOKUP_ELEM, map, &key, &value, 0), ENOENT);
	} else {
		FAILS(set(map, 4, 0, 0), E2BIG);
		FAILS(set(map, 0, 0, BPF_NOEXIST), EEXIST);
		key = 0;
		FAILS(element(BPF_MAP_DELETE_ELEM, map, &key, NULL, 0), EINVAL);
	}
	FAILS(set(map, 0, 0, 77), EINVAL);
	FAILS(element(BPF_MAP_LOOKUP_ELEM, map, BAD_PTR, buf, 0), EFAULT);
	FAILS(element(BPF_MAP_LOOKUP_ELEM, program, &key, buf, 0), EINVAL);
	CHECK(write(ends.p, "five5", 5) == 5 && ready(k, POLLIN, 10000) && recv(k, buf, 64, 0) == 5);
	FAILS(attach(k, ends.a, map), EINVAL);
	close(map);
	close(early_dup);
	close(late_dup);
	CHECK(write(ends.p, "more messages", 13) == 13 && ready(k, POLLIN, 10000)); /* still runs */
	close(program);
	close(k);
	close(ends.a);
	close(ends.p);
}

static void questions(int granted)
{
	int map = map_create(BPF_MAP_TYPE_ARRAY, 4, 12, 7);
	struct bpf_map_info about_map = {0};
	union bpf_attr attr = {0};
	attr.info.bpf_fd = (unsigned)map;
	attr.info.info_len = sizeof about_map;
	attr.info.info = (uintptr_t)&about_map;
	CHECK(bpf(BPF_OBJ_GET_INFO_BY_FD, &attr) == 0);
	CHECK(about_map.type == BPF_MAP_TYPE_ARRAY && about_map.key_size == 4);
	CHECK(about_map.value_size == 12 && about_map.max_entries == 7);
	CHECK(strcmp(about_map.name, "a_map") == 0 && attr.info.info_len >= 40);
	attr.info.info_len = 5000;
	FAILS(bpf(BPF_OBJ_GET_INFO_BY_FD, &attr), E2BIG);

	int program = prog_p4();
	struct bpf_prog_info about = {0};
	attr.info.bpf_fd = (unsigned)program;
	attr.info.info_len = sizeof about;
	attr.info.info = (uintptr_t)&about;
	CHECK(bpf(BPF_OBJ_GET_INFO_BY_FD, &attr) == 0 && about.type == BPF_PROG_TYPE_SOCKET_FILTER);

	char frame[14 + 8] = {[17] = 5}, back[sizeof frame];
	memset(&attr, 0, sizeof attr);
	attr.test.prog_fd = (unsigned)program;
	attr.test.data_in = (uintptr_t)frame;
	attr.test.data_size_in = sizeof frame;
	attr.test.data_out = (uintptr_t)back;
	attr.test.data_size_out = sizeof back;
	attr.test.repeat = 1;
	CHECK(bpf(BPF_PROG_TEST_RUN, &attr) == 0 && attr.test.retval == 9);
	CHECK(attr.test.data_size_out == sizeof frame && memcmp(frame, back, sizeof frame) == 0);
	attr.test.data_size_in = 13;
	FAILS(bpf(BPF_PROG_TEST_RUN, &attr), EINVAL);

	memset(&attr, 0, sizeof attr);
	attr.map_fd = (unsigned)map;
	CHECK(bpf(BPF_MAP_FREEZE, &attr) == 0);
	FAILS(bpf(BPF_MAP_FREEZE, &attr), EPERM);
	char value[12] = {0};
	unsigned key = 0;
	FAILS(element(BPF_MAP_UPDATE_ELEM, map, &key, value, 0), EPERM);
	CHECK(element(BPF_MAP_LOOKUP_ELEM, map, &key, value, 0) == 0);
	close(map);
	close(program);

	/* The verifier says why, the kernel's or ours. */
	struct bpf_insn bad[] = {MOV_R(0, 5), EXIT};
	char log[512] = "";
	memset(&attr, 0, sizeof attr);
	attr.prog_type = BPF_PROG_TYPE_SOCKET_FILTER;
	attr.insns = (uintptr_t)bad;
	attr.insn_cnt = 2;
	attr.license = (uintptr_t) "GPL";
	attr.log_level = 1;
	attr.log_size = sizeof log;
	attr.log_buf = (uintptr_t)log;
	FAILS(bpf(BPF_PROG_LOAD, &attr), EACCES);
	CHECK(strlen(log) > 5 && strchr(log, '\n'));
	if (!granted) {
		attr.log_size = 100;
		FAILS(bpf(BPF_PROG_LOAD, &attr), EINVAL);
		attr.log_size = sizeof log;
		attr.log_buf = 8;
		FAILS(bpf(BPF_PROG_LOAD, &attr), EFAULT);
	}
	attr.insns = (uintptr_t)BAD_PTR;
	FAILS(bpf(BPF_PROG_LOAD, &attr), EFAULT);
	FAILS(syscall(SYS_bpf, BPF_PROG_LOAD, BAD_PTR, sizeof attr), EFAULT);
}

/* cBPF is none of KCM's programs, and a TCP socket's own filter none of ours. */
static void classic(void)
{
	struct sock_filter all[] = {{BPF_RET | BPF_K, 0, 0, 0xffff}};
	struct sock_fprog filter = {1, all};
	struct pair ends = pair();
	/* Some kernels refuse any filter to an ordinary user. */
	CHECK(setsockopt(ends.a, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof filter) == 0 || errno == EPERM);
	int k = kcm(SOCK_DGRAM), parser = prog_const(4);
	FAILS(attach(k, ends.a, k), EINVAL);
	FAILS(attach(k, ends.a, ends.p), EINVAL);
	FAILS(attach(k, ends.a, 999), EBADF);
	CHECK(attach(k, ends.a, parser) == 0);
	char buf[8];
	CHECK(write(ends.p, "fourfour", 8) == 8 && ready(k, POLLIN, 10000) && recv(k, buf, 8, 0) == 4);
	close(k);
	close(parser);
	close(ends.a);
	close(ends.p);
}

#ifdef __x86_64__
static long unseen(long number, long a, long b, long c)
{
	__asm__ volatile("syscall" : "+a"(number) : "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
	return number;
}
#else
static long unseen(long number, long a, long b, long c)
{
	register long x8 __asm__("x8") = number, x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b, x2 __asm__("x2") = c;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
	return x0;
}
#endif

/* A program that reached the kernel past every hook; −1 where the kernel refuses it. */
static int load_unseen(void)
{
	struct bpf_insn insns[] = {MOV_R(6, 1), LD_ABS_W(0), ADD_I(0, 4), EXIT};
	union bpf_attr attr = {.prog_type = BPF_PROG_TYPE_SOCKET_FILTER, .insn_cnt = 4};
	attr.insns = (uintptr_t)insns;
	attr.license = (uintptr_t) "GPL";
	return (int)unseen(SYS_bpf, BPF_PROG_LOAD, (long)&attr, sizeof attr);
}

static void answer_bpf_with(int error)
{
	struct sock_filter insns[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_bpf, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog filter = {4, insns};
	CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0);
}

static void loaded_out_of_sight(int program)
{
	if (program < 0)
		return;
	int k = kcm(SOCK_DGRAM);
	struct pair ends = pair();
	CHECK(attach(k, ends.a, program) == 0);
	close(program);
	msg(ends.p, 5, 'a');
	msg(ends.p, 0, 'b');
	char buf[16];
	CHECK(ready(k, POLLIN, 10000) && recv(k, buf, 16, 0) == 9 && buf[8] == 'a');
	CHECK(recv(k, buf, 16, 0) == 4);
	PUT(ends.p, "\0\0");
	PUT(ends.p, "\0\003abc");
	CHECK(ready(k, POLLIN, 10000) && recv(k, buf, 16, 0) == 7 && buf[6] == 'c');
	close(k);
	close(ends.a);
	close(ends.p);
}

int main(int argc, char **argv)
{
	const char *like = argc > 1 ? argv[1] : "as-is";
	hang_guard("bpf_calls");
	if (strcmp(like, "ordinary") == 0) {
		CHECK(getuid() != 0 || (setgid(65534) == 0 && setuid(65534) == 0));
		like = "as-is";
	}
	int early = load_unseen();
	if (strcmp(like, "as-is") == 0) {
		loaded_out_of_sight(load_unseen());
	} else {
		int error = strcmp(like, "EPERM") == 0 ? EPERM : ENOSYS;
		answer_bpf_with(error);
		if (early >= 0) {
			struct pair ends = pair();
			FAILS(attach(kcm(SOCK_DGRAM), ends.a, early), EINVAL);
		}
	}
	struct bpf_insn nothing[] = {MOV_I(0, 0), EXIT};
	int granted = strcmp(like, "as-is") == 0 && getuid() == 0 && LOAD(nothing) >= 0;
	maps(BPF_MAP_TYPE_ARRAY);
	maps(BPF_MAP_TYPE_HASH);
	questions(granted);
	classic();
	return 0;
}
