/* Section D: what ends a message on the sending side, and what reaches the peer. */
#include "guest.h"

static char payload[] = "abcdefghijkl0123456789";

/* A KCM socket and the peer of its only connection. */
static int k;
static struct pair t;

static void open_pair(int type)
{
	k = kcm(type);
	t = attached(k, prog_p4());
}

static void dgram_send(int type)
{
	open_pair(type);
	R(send(k, payload, 12, 0));
	drain(t.p, 12);
}

static void seq_send(int type)
{
	(void)type;
	open_pair(SOCK_SEQPACKET);
	R(send(k, payload, 12, 0));
	drain(t.p, 0);
	R(send(k, payload, 12, MSG_EOR));
	drain(t.p, 24);
}

static void seq_write(int type)
{
	(void)type;
	struct iovec parts[] = {{payload, 5}, {payload + 5, 7}};
	open_pair(SOCK_SEQPACKET);
	R(write(k, payload, 12));
	drain(t.p, 12);
	R(writev(k, parts, 2));
	drain(t.p, 12);
}

static void dgram_more(int type)
{
	open_pair(type);
	R(send(k, payload, 12, MSG_MORE));
	drain(t.p, 0);
	R(send(k, payload, 0, 0));
	drain(t.p, 12);
	R(send(k, payload, 12, MSG_MORE));
	drain(t.p, 0);
	R(send(k, payload, 12, 0));
	drain(t.p, 24);
}

static void seq_more(int type)
{
	(void)type;
	open_pair(SOCK_SEQPACKET);
	R(send(k, payload, 12, MSG_MORE));
	drain(t.p, 0);
	R(send(k, payload, 12, 0));
	drain(t.p, 0);
	R(write(k, "xyz", 3));
	drain(t.p, 27);
}

static void dgram_more_eor(int type)
{
	open_pair(type);
	R(send(k, payload, 5, MSG_MORE | MSG_EOR));
	drain(t.p, 0);
	R(send(k, "", 0, 0));
	drain(t.p, 5);
}

static void seq_more_eor(int type)
{
	(void)type;
	open_pair(SOCK_SEQPACKET);
	R(send(k, payload, 5, MSG_MORE | MSG_EOR));
	drain(t.p, 5);
}

static void empty_nothing_open(int type)
{
	open_pair(type);
	R(send(k, "", 0, MSG_EOR));
	drain(t.p, 0);
}

static void seq_empty_ends(int type)
{
	(void)type;
	open_pair(SOCK_SEQPACKET);
	R(send(k, payload, 5, 0));
	R(send(k, "", 0, MSG_EOR));
	drain(t.p, 5);
}

static void seq_empty_write_ends(int type)
{
	(void)type;
	open_pair(SOCK_SEQPACKET);
	R(send(k, payload, 5, 0));
	R(write(k, "", 0));
	drain(t.p, 5);
}

static void batch(int type)
{
	open_pair(type);
	R(send(k, "aaaa", 4, MSG_BATCH | (type == SOCK_SEQPACKET ? MSG_EOR : 0)));
	drain(t.p, 0);
	R(send(k, "bbbb", 4, MSG_BATCH | MSG_EOR));
	drain(t.p, 0);
	R(send(k, "cccc", 4, MSG_EOR));
	drain(t.p, 12);
}

static void dgram_batch_flush(int type)
{
	open_pair(type);
	R(send(k, "aaaa", 4, MSG_BATCH));
	drain(t.p, 0);
	R(send(k, "", 0, 0));
	drain(t.p, 4);
}

static void batch_close(int type)
{
	open_pair(type);
	R(send(k, "aaaaa", 5, MSG_BATCH | MSG_EOR));
	R(close(k));
	drain(t.p, 0);
}

static void batch_then_attach(int type)
{
	k = kcm(type);
	R(send(k, "aa", 2, MSG_BATCH | MSG_EOR));
	t = attached(k, prog_p4());
	nap(30);
	drain(t.p, 0);
	R(send(k, "bb", 2, MSG_EOR));
	drain(t.p, 4);
}

/* sendmmsg of 3 x 6 bytes; prints the result and the entries' lengths. */
static void send_three(int entry_flags, int call_flags)
{
	struct iovec iov[3];
	struct mmsghdr mm[3] = {0};
	for (int i = 0; i < 3; i++) {
		iov[i] = (struct iovec){payload + i * 6, 6};
		mm[i].msg_hdr = (struct msghdr){.msg_iov = &iov[i], .msg_iovlen = 1, .msg_flags = entry_flags};
	}
	RL("sendmmsg", sendmmsg(k, mm, 3, call_flags));
	say("lengths %u %u %u", mm[0].msg_len, mm[1].msg_len, mm[2].msg_len);
}

static void dgram_sendmmsg(int type)
{
	open_pair(type);
	send_three(0, 0);
	drain(t.p, 18);
}

static void seq_sendmmsg(int type)
{
	(void)type;
	open_pair(SOCK_SEQPACKET);
	send_three(0, 0);
	drain(t.p, 0);
	send_three(MSG_EOR, 0);
	drain(t.p, 36);
}

static void seq_sendmmsg_eor(int type)
{
	(void)type;
	open_pair(SOCK_SEQPACKET);
	send_three(0, MSG_EOR);
	drain(t.p, 18);
}

static void seq_msghdr_flags(int type)
{
	(void)type;
	struct iovec iov = {payload, 12};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_flags = MSG_EOR};
	open_pair(SOCK_SEQPACKET);
	R(sendmsg(k, &m, 0));
	drain(t.p, 0);
}

static void sendmmsg_fault(int type)
{
	struct iovec iov[3] = {{payload, 4}, {BAD_PTR, 4}, {payload + 8, 4}};
	struct mmsghdr mm[3] = {0};
	open_pair(type);
	for (int i = 0; i < 3; i++)
		mm[i].msg_hdr = (struct msghdr){.msg_iov = &iov[i], .msg_iovlen = 1};
	R(sendmmsg(k, mm, 3, 0));
	drain(t.p, 4);
}

static void addresses(int type)
{
	struct sockaddr_in addr = {.sin_family = AF_INET};
	char big[1024] = {0};
	open_pair(type);
	R(sendto(k, payload, 12, MSG_EOR, (void *)&addr, sizeof addr));
	drain(t.p, 12);
	R(sendto(k, payload, 12, MSG_EOR, (void *)big, 1000));
	R(sendto(k, payload, 12, MSG_EOR, BAD_PTR, sizeof addr));
	drain(t.p, 0);
}

static void control_data(int type)
{
	union {
		char raw[CMSG_SPACE(sizeof(int))];
		struct cmsghdr header;
	} control = {.header = {.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
	struct iovec iov = {payload, 12};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	open_pair(type);
	enum { TIMES = 20 }; /* What the library opens once, whenever that is, is not a leak. */
	int before = open_fd_count();
	for (int i = 0; i < TIMES; i++) {
		char got[12];
		sendmsg(k, &m, MSG_EOR);
		collect(t.p, got, sizeof got, sizeof got);
	}
	R(sendmsg(k, &m, MSG_EOR));
	drain(t.p, 12);
	control.header.cmsg_len = 1000;
	R(sendmsg(k, &m, MSG_EOR));
	drain(t.p, 12);
	say("open descriptors changed by %d", (open_fd_count() - before) / TIMES);
}

static void ignored_flags(int type)
{
	open_pair(type);
	R(send(k, payload, 12, MSG_EOR | MSG_OOB));
	drain(t.p, 12);
	R(send(k, payload, 12, MSG_EOR | MSG_ZEROCOPY));
	drain(t.p, 12);
	R(send(k, payload, 12, MSG_EOR | MSG_CONFIRM | MSG_DONTROUTE | MSG_FASTOPEN));
	drain(t.p, 12);
	R(send(k, payload, 12, MSG_EOR | 0x20000000));
	drain(t.p, 12);
}

static void iov_counts(int type)
{
	static struct iovec iov[2000];
	struct msghdr m = {.msg_iov = iov, .msg_iovlen = 0};
	open_pair(type);
	R(sendmsg(k, &m, MSG_EOR));
	m.msg_iovlen = 2000;
	R(sendmsg(k, &m, MSG_EOR));
	drain(t.p, 0);
}

static void dgram_fault_discards(int type)
{
	open_pair(type);
	R(send(k, "abc", 3, MSG_MORE));
	R(send(k, BAD_PTR, 3, MSG_MORE));
	R(send(k, "last", 4, 0));
	drain(t.p, 4);
}

static void seq_fault_keeps(int type)
{
	(void)type;
	open_pair(SOCK_SEQPACKET);
	R(send(k, "abc", 3, 0));
	R(send(k, BAD_PTR, 3, 0));
	R(send(k, "last", 4, MSG_EOR));
	drain(t.p, 7);
}

/* 160 KiB readable, then an unmapped page 100 bytes before the end of what is sent. */
enum { READABLE = 160 * 1024, FAULTY = READABLE + 100 };

static char *faulty_region(void)
{
	char *region = mmap(NULL, READABLE + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	fill(region, READABLE, 0);
	munmap(region + READABLE, 4096);
	return region;
}

static void dgram_fault_late(int type)
{
	open_pair(type);
	char *region = faulty_region();
	R(send(k, region, FAULTY, 0));
	drain(t.p, 0);
	R(send(k, "next", 4, 0));
	drain(t.p, 4);
}

static void seq_fault_late(int type)
{
	(void)type;
	static char got[1 << 19];
	open_pair(SOCK_SEQPACKET);
	char *region = faulty_region();
	long count = send(k, region, FAULTY, MSG_EOR);
	say("accepted in part: %d", count > 0 && count <= READABLE);
	size_t accepted = count > 0 ? count : 0;
	drain(t.p, 0);
	R(send(k, "end", 3, MSG_EOR));
	size_t total = collect(t.p, got, sizeof got, accepted + 3);
	say("peer got what was accepted and 3 more: %d", total == accepted + 3 && filled(got, accepted, 0));
}

static void open_message_over_fork(int type)
{
	open_pair(type);
	R(send(k, "AA", 2, MSG_MORE));
	pid_t pid = fork();
	if (!pid) {
		ssize_t sent = send(k, "BB", 2, MSG_EOR);
		_exit(sent == 2 ? 0 : 1);
	}
	int status;
	waitpid(pid, &status, 0);
	say("child sent: %d", !status);
	drain(t.p, 4);
}

static void *send_parts(void *letter)
{
	char part[8];
	memset(part, *(char *)letter, sizeof part);
	for (int i = 0; i < 50; i++)
		send(k, part, sizeof part, MSG_MORE);
	return NULL;
}

static void parts_of_two_threads(int type)
{
	static char got[1024];
	open_pair(type);
	pthread_t one = spawn(send_parts, "a"), two = spawn(send_parts, "b");
	pthread_join(one, NULL);
	pthread_join(two, NULL);
	drain(t.p, 0);
	R(send(k, "", 0, MSG_EOR));
	size_t total = collect(t.p, got, sizeof got, 800);
	int whole = 1, a = 0;
	for (size_t i = 0; i + 8 <= total; i += 8) {
		a += got[i] == 'a';
		for (int j = 1; j < 8; j++)
			whole &= got[i + j] == got[i];
	}
	say("one message of %zu bytes, %d parts of the first thread, parts whole: %d", total, a, whole);
}

static void sizes(int type)
{
	static const size_t lens[] = {1000, 40000, 65536, 100000, 300000, 700000, 1500000};
	static char out[1500000], in[1500001];
	open_pair(type);
	for (size_t i = 0; i < sizeof lens / sizeof *lens; i++) {
		fill(out, lens[i], i);
		RL("write", write(k, out, lens[i]));
		size_t got = collect(t.p, in, sizeof in, lens[i]);
		say("peer got %zu exact %d", got, filled(in, got, i));
	}
}

static void splice_dgram(int type)
{
	int ends[2];
	open_pair(type);
	if (pipe(ends) || write(ends[1], payload, 20) != 20)
		return;
	R(splice(ends[0], NULL, k, NULL, 10, 0));
	drain(t.p, 10);
	R(splice(ends[0], NULL, k, NULL, 10, SPLICE_F_MORE));
	drain(t.p, 0);
	R(send(k, "E", 1, 0));
	drain(t.p, 11);
}

static void splice_seq(int type)
{
	int ends[2];
	(void)type;
	open_pair(SOCK_SEQPACKET);
	if (pipe(ends) || write(ends[1], payload, 10) != 10)
		return;
	R(splice(ends[0], NULL, k, NULL, 10, 0));
	nap(20);
	drain(t.p, 0);
	R(send(k, "E", 1, MSG_EOR));
	drain(t.p, 1);
}

static int file_of(size_t len)
{
	char *data = malloc(len);
	int fd = memfd_create("lane", 0);
	fill(data, len, 3);
	if (write(fd, data, len) != (ssize_t)len)
		say("memfd write failed");
	free(data);
	lseek(fd, 0, SEEK_SET);
	return fd;
}

static void sendfile_whole(int type)
{
	static char got[32768];
	open_pair(type);
	int file = file_of(20000);
	R(sendfile(k, file, NULL, 20000));
	size_t total = collect(t.p, got, sizeof got, 20000);
	say("peer got %zu exact %d", total, filled(got, total, 3));
}

static void sendfile_short(int type)
{
	open_pair(type);
	int file = file_of(1000);
	lseek(file, 990, SEEK_SET);
	R(sendfile(k, file, NULL, 100));
	drain(t.p, 0);
	R(send(k, "E", 1, 0));
	drain(t.p, 11);
}

static void splice_errors(int type)
{
	int ends[2];
	loff_t offset = 0;
	open_pair(type);
	if (pipe2(ends, O_NONBLOCK))
		return;
	R(splice(ends[0], NULL, k, NULL, 10, SPLICE_F_NONBLOCK));
	if (write(ends[1], payload, 10) != 10)
		return;
	R(splice(ends[0], NULL, k, &offset, 10, 0));
}

static const struct kcm_case cases[] = {
	{"D01", S, ONCE, dgram_send},
	{"D02", S, ONCE, seq_send},
	{"D03", S, ONCE, seq_write},
	{"D04", S, ONCE, dgram_more},
	{"D05", S, ONCE, seq_more},
	{"D06", S, ONCE, dgram_more_eor},
	{"D07", S, ONCE, seq_more_eor},
	{"D08", S, BOTH, empty_nothing_open},
	{"D09", S, ONCE, seq_empty_ends},
	{"D10", S, ONCE, seq_empty_write_ends},
	{"D11", S, BOTH, batch},
	{"D12", S, ONCE, dgram_batch_flush},
	{"D13", S, BOTH, batch_close},
	{"D14", S, BOTH, batch_then_attach},
	{"D15", S, ONCE, dgram_sendmmsg},
	{"D16", S, ONCE, seq_sendmmsg},
	{"D17", S, ONCE, seq_sendmmsg_eor},
	{"D18", S, ONCE, seq_msghdr_flags},
	{"D19", S, ONCE, sendmmsg_fault},
	{"D20", S, BOTH, addresses},
	{"D21", S, BOTH, control_data},
	{"D22", S, BOTH, ignored_flags},
	{"D23", S, BOTH, iov_counts},
	{"D24", S, ONCE, dgram_fault_discards},
	{"D25", S, ONCE, seq_fault_keeps},
	{"D26", S, ONCE, dgram_fault_late},
	{"D27", Q, ONCE, seq_fault_late},
	{"D28", S, ONCE, open_message_over_fork},
	{"D29", T, ONCE, parts_of_two_threads},
	{"D30", S, BOTH, sizes},
	{"D31", S, ONCE, splice_dgram},
	{"D32", V, ONCE, splice_seq},
	{"D33", S, ONCE, sendfile_whole},
	{"D34", Q, ONCE, sendfile_short},
	{"D35", S, BOTH, splice_errors},
};
GUEST_MAIN(cases)
