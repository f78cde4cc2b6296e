/* bpf_libbpf [UID]: a parser program and its map, loaded by libbpf, with the caller's rights or those
 * of another user whom the kernel refuses. */
#include "check.h"

#include <bpf/bpf.h>
#include <sys/prctl.h>

int main(int argc, char **argv)
{
	hang_guard("bpf_libbpf");
	if (argc > 1 && geteuid() == 0)
		CHECK(setgid(atoi(argv[1])) == 0 && setuid(atoi(argv[1])) == 0 && prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0);
	/* Counts what it is asked: fetch-and-add on the map's only value, then the length of P4. */
	int map = bpf_map_create(BPF_MAP_TYPE_ARRAY, "asked", 4, 8, 1, NULL);
	CHECK(map >= 0);
	const struct bpf_insn insns[] = {
		MOV_R(6, 1),
		INSN(BPF_ST | BPF_W | BPF_MEM, 10, 0, -4, 0),
		INSN(BPF_LD | BPF_DW | BPF_IMM, 1, BPF_PSEUDO_MAP_FD, 0, map),
		INSN(0, 0, 0, 0, 0),
		MOV_R(2, 10), ADD_I(2, -4), CALL(BPF_FUNC_map_lookup_elem), JEQ_I(0, 0, 2),
		MOV_I(1, 1), INSN(BPF_STX | BPF_DW | BPF_ATOMIC, 0, 1, 0, BPF_ADD),
		LD_ABS_W(0), ADD_I(0, 4), EXIT};
	char log[4096] = "";
	LIBBPF_OPTS(bpf_prog_load_opts, opts, .log_buf = log, .log_size = sizeof log, .log_level = 1);
	int program = bpf_prog_load(BPF_PROG_TYPE_SOCKET_FILTER, "p4", "GPL", insns, sizeof insns / sizeof *insns, &opts);
	if (program < 0)
		printf("%s\n", log);
	CHECK(program >= 0);

	int k = kcm(SOCK_DGRAM);
	struct pair t = attached(k, program);
	char data[64], got[64];
	for (int i = 0; i < 3; i++) {
		CHECK(write(t.p, data, p4(data, 10, 'a' + i)) == 14);
		CHECK(recv(k, got, sizeof got, 0) == 14 && memcmp(got, data, 14) == 0);
	}
	uint32_t key = 0;
	uint64_t asked = 0;
	CHECK(bpf_map_lookup_elem(map, &key, &asked) == 0 && asked >= 3);

	/* A program that reads past its stack is refused, by whoever verifies it, with a reason. */
	const struct bpf_insn bad[] = {LDX_B(0, 10, 8), EXIT};
	log[0] = 0;
	CHECK(bpf_prog_load(BPF_PROG_TYPE_SOCKET_FILTER, "bad", "GPL", bad, 2, &opts) < 0);
	CHECK(errno == EACCES && log[0]);
	return 0;
}
