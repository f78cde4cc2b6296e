/* Section G: receive calls on messages of 12 bytes that arrive one by one. */
#include "guest.h"

static int k;
static struct pair t;

static void open_pair(int type)
{
	k = kcm(type);
	t = attached(k, prog_p4());
}

/* A pair with one 12-byte message queued. */
static void open_queued(int type)
{
	open_pair(type);
	msg(t.p, 8, 'a');
	ready(k, POLLIN, 4000);
}

static void whole(int type)
{
	char buf[100];
	struct sockaddr_storage name;
	char control[64];
	struct iovec iov = {buf, sizeof buf};
	struct msghdr m = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_name = &name, .msg_namelen = sizeof name,
		.msg_control = control, .msg_controllen = sizeof control};
	open_queued(type);
	R(recvmsg(k, &m, 0));
	say("flags %s namelen %u controllen %zu", msg_flags(m.msg_flags), m.msg_namelen, (size_t)m.msg_controllen);
}

static void exact(int type)
{
	open_queued(type);
	rx(k, 12, 0);
}

static void short_buffer(int type)
{
	open_queued(type);
	rx(k, 5, 0);
	rx_none(k);
}

static void empty_buffer(int type)
{
	open_queued(type);
	rx(k, 0, 0);
	rx_none(k);
}

static void peek(int type)
{
	open_queued(type);
	rx(k, 5, MSG_PEEK);
	rx(k, 100, MSG_PEEK);
	rx(k, 100, 0);
	rx_none(k);
}

static void peek_trunc(int type)
{
	open_queued(type);
	rx(k, 5, MSG_PEEK | MSG_TRUNC);
	rx(k, 100, 0);
}

static void trunc_flag(int type)
{
	open_queued(type);
	rx(k, 5, MSG_TRUNC);
	rx_none(k);
}

static void peek_empty_buffer(int type)
{
	open_queued(type);
	rx(k, 0, MSG_PEEK);
	rx(k, 100, 0);
}

static void ignored_flags(int type)
{
	open_queued(type);
	rx(k, 100, MSG_WAITALL);
	rx_none(k);
	msg(t.p, 8, 'b');
	rx(k, 100, MSG_OOB);
	rx_none(k);
	msg(t.p, 8, 'c');
	rx(k, 100, MSG_ERRQUEUE);
	rx_none(k);
}

static void bad_buffer(int type)
{
	open_queued(type);
	R(recv(k, BAD_PTR, 100, 0));
	rx_none(k);
	msg(t.p, 8, 'b');
	ready(k, POLLIN, 4000);
	R(recv(k, BAD_PTR, 100, MSG_PEEK));
	rx(k, 100, 0);
}

static void reads(int type)
{
	char buf[16] = {0};
	open_queued(type);
	R(read(k, buf, 0));
	R(read(k, buf, 5));
	say("'%s'", bytes(buf, 5));
	fcntl(k, F_SETFL, O_RDWR | O_NONBLOCK);
	R(read(k, buf, sizeof buf));
}

static void recvfrom_address(int type)
{
	char buf[100], untouched[32];
	struct sockaddr_storage name;
	socklen_t len = sizeof name;
	open_queued(type);
	memset(&name, 0x5a, sizeof name);
	memset(untouched, 0x5a, sizeof untouched);
	R(recvfrom(k, buf, sizeof buf, 0, (void *)&name, &len));
	say("addrlen %u, address untouched: %d", len, !memcmp(&name, untouched, sizeof untouched));
}

static void recvmmsg_two(int type)
{
	char buf[3][100];
	struct iovec iov[3];
	struct mmsghdr mm[3] = {0};
	open_queued(type);
	msg(t.p, 8, 'b');
	for (int i = 0; i < 3; i++) {
		iov[i] = (struct iovec){buf[i], sizeof buf[i]};
		mm[i].msg_hdr = (struct msghdr){.msg_iov = &iov[i], .msg_iovlen = 1};
	}
	R(recvmmsg(k, mm, 3, DW, NULL));
	for (int i = 0; i < 2; i++)
		say("%u %s %s", mm[i].msg_len, msg_flags(mm[i].msg_hdr.msg_flags), bytes(buf[i], mm[i].msg_len));
}

static void timeout(int type)
{
	char buf[100];
	open_pair(type);
	set_timeout(k, SO_RCVTIMEO, 300);
	long before = now_ms();
	R(recv(k, buf, sizeof buf, 0));
	say("not before 0.3 s: %d", now_ms() - before >= 290);
}

static void *message_later(void *arg)
{
	(void)arg;
	char data[64];
	usleep(150000);
	if (write(t.p, data, p4(data, 8, 'm')) < 0)
		return NULL;
	return NULL;
}

static void interrupted(int type)
{
	char buf[100];
	open_pair(type);
	signal_after(60, 0);
	RL("plain", recv(k, buf, sizeof buf, 0));
	signal_over();
	set_timeout(k, SO_RCVTIMEO, 4000);
	signal_after(60, 0);
	RL("SO_RCVTIMEO", recv(k, buf, sizeof buf, 0));
	signal_over();
	signal_after(60, SA_RESTART);
	RL("SA_RESTART and SO_RCVTIMEO", recv(k, buf, sizeof buf, 0));
	signal_over();
	set_timeout(k, SO_RCVTIMEO, 0);
	signal_after(60, SA_RESTART);
	spawn(message_later, NULL);
	RL("SA_RESTART, then a message", recv(k, buf, sizeof buf, 0));
	signal_over();
}

static void fin_is_no_end(int type)
{
	char buf[100];
	open_pair(type);
	shutdown(t.p, SHUT_WR);
	nap(10);
	set_timeout(k, SO_RCVTIMEO, 60);
	R(recv(k, buf, sizeof buf, 0));
	close(t.p);
	nap(10);
	R(recv(k, buf, sizeof buf, 0));
}

static void no_timestamp(int type)
{
	char buf[100], control[64];
	struct iovec iov = {buf, sizeof buf};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	open_pair(type);
	R(set_int(k, SOL_SOCKET, SO_TIMESTAMP, 1));
	msg(t.p, 8, 'a');
	ready(k, POLLIN, 4000);
	R(recvmsg(k, &m, 0));
	say("controllen %zu", (size_t)m.msg_controllen);
}

static void no_iov(int type)
{
	struct msghdr m = {0};
	open_queued(type);
	R(recvmsg(k, &m, MSG_CMSG_CLOEXEC));
	say("flags %s", msg_flags(m.msg_flags));
	rx_none(k);
}

static void *receiver(void *result)
{
	char buf[100];
	*(long *)result = recv(k, buf, sizeof buf, 0);
	return NULL;
}

static void closed_under_receiver(int type)
{
	long result = -2;
	open_pair(type);
	pthread_t thread = spawn(receiver, &result);
	usleep(50000);
	R(close(k));
	usleep(20000);
	msg(t.p, 8, 'a');
	pthread_join(thread, NULL);
	say("blocked recv = %ld", result);
}

static void two_receivers(int type)
{
	long results[2] = {-2, -2};
	pthread_t threads[2];
	open_pair(type);
	for (int i = 0; i < 2; i++)
		threads[i] = spawn(receiver, &results[i]);
	usleep(50000);
	msg(t.p, 8, 'a');
	usleep(50000);
	say("served after one message: %d", (results[0] == 12) + (results[1] == 12));
	msg(t.p, 8, 'b');
	pthread_join(threads[0], NULL);
	pthread_join(threads[1], NULL);
	say("results %ld %ld", results[0], results[1]);
}

static void splice_part(int type)
{
	int ends[2];
	open_pair(type);
	if (pipe(ends))
		return;
	msg(t.p, 6, 'a');
	ready(k, POLLIN, 4000);
	R(splice(k, NULL, ends[1], NULL, 4, 0));
	rx_none(k);
}

static void splice_nonblock(int type)
{
	int ends[2];
	open_pair(type);
	if (pipe(ends))
		return;
	msg(t.p, 6, 'a');
	ready(k, POLLIN, 4000);
	R(splice(k, NULL, ends[1], NULL, 10, SPLICE_F_NONBLOCK));
	rx_none(k);
}

static void splice_empty(int type)
{
	int ends[2];
	open_pair(type);
	if (pipe(ends))
		return;
	set_timeout(k, SO_RCVTIMEO, 200);
	long before = now_ms();
	R(splice(k, NULL, ends[1], NULL, 10, SPLICE_F_NONBLOCK));
	say("at once: %d", now_ms() - before < 150);
}

static void splice_zero(int type)
{
	int ends[2];
	open_queued(type);
	if (pipe(ends))
		return;
	R(splice(k, NULL, ends[1], NULL, 0, 0));
	rx(k, 100, 0);
}

static void sendfile_from(int type)
{
	int file = memfd_create("lane", 0);
	open_queued(type);
	R(sendfile(file, k, NULL, 12));
	rx(k, 100, 0);
}

static void sizes(int type)
{
	static const size_t payloads[] = {1000, 10000, 60000, 200000, 500000, 1000000};
	static char out[1000004], in[1000005];
	open_pair(type);
	if (set_int(t.a, SOL_SOCKET, SO_RCVBUFFORCE, 1 << 20) && set_int(t.a, SOL_SOCKET, SO_RCVBUF, 1 << 20))
		say("SO_RCVBUF = %s", errno_name(errno));
	if (get_int(t.a, SOL_SOCKET, SO_RCVBUF) < 1 << 20)
		lane_lacks("privilege for a receive buffer of 1 MiB");
	for (size_t i = 0; i < sizeof payloads / sizeof *payloads; i++) {
		uint32_t header = htonl(payloads[i]);
		memcpy(out, &header, 4);
		fill(out + 4, payloads[i], i);
		pid_t pid = fork();
		if (!pid) {
			size_t done = 0;
			while (done < payloads[i] + 4) {
				ssize_t wrote = write(t.p, out + done, payloads[i] + 4 - done);
				if (wrote <= 0)
					break;
				done += wrote;
			}
			_exit(0);
		}
		struct iovec iov = {in, sizeof in};
		struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
		long got = recvmsg(k, &m, 0);
		say("received %ld %s exact %d", got, msg_flags(m.msg_flags), got > 4 && filled(in + 4, got - 4, i));
		waitpid(pid, NULL, 0);
	}
}

static void fork_and_dup(int type)
{
	int status;
	open_queued(type);
	pid_t pid = fork();
	if (!pid) {
		char buf[100];
		_exit(recv(k, buf, sizeof buf, DW) == 12 ? 0 : 1);
	}
	waitpid(pid, &status, 0);
	say("child received: %d", !status);
	rx_none(k);
	int d = dup(k);
	R(close(k));
	msg(t.p, 8, 'b');
	rx(d, 100, 0);
}

static int pass(int fd)
{
	union {
		char raw[CMSG_SPACE(sizeof(int))];
		struct cmsghdr header;
	} control = {.header = {.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
	char byte = 'x';
	struct iovec iov = {&byte, 1};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	int ends[2], passed = -1;
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends))
		return -1;
	memcpy(CMSG_DATA(&control.header), &fd, sizeof fd);
	R(sendmsg(ends[0], &m, 0));
	close(fd);
	m.msg_controllen = sizeof control;
	R(recvmsg(ends[1], &m, 0));
	memcpy(&passed, CMSG_DATA(&control.header), sizeof passed);
	return passed;
}

static void passed_by_rights(int type)
{
	char buf[16];
	open_pair(type);
	close(t.a);
	int c = FD(pass(k));
	R(send(c, "hello", 5, MSG_EOR));
	drain(t.p, 5);
	R(close(c));
	ready(t.p, POLLIN, 4000);
	R(recv(t.p, buf, sizeof buf, DW));
}

static const struct kcm_case cases[] = {
	{"G01", S, BOTH, whole},
	{"G02", S, BOTH, exact},
	{"G03", V, BOTH, short_buffer},
	{"G04", S, BOTH, empty_buffer},
	{"G05", S, BOTH, peek},
	{"G06", S, BOTH, peek_trunc},
	{"G07", S, BOTH, trunc_flag},
	{"G08", S, BOTH, peek_empty_buffer},
	{"G09", S, BOTH, ignored_flags},
	{"G10", S, BOTH, bad_buffer},
	{"G11", S, BOTH, reads},
	{"G12", S, BOTH, recvfrom_address},
	{"G13", S, BOTH, recvmmsg_two},
	{"G14", T, BOTH, timeout},
	{"G15", S, BOTH, interrupted},
	{"G16", S, BOTH, fin_is_no_end},
	{"G17", S, BOTH, no_timestamp},
	{"G18", S, BOTH, no_iov},
	{"G19", T, BOTH, closed_under_receiver},
	{"G20", T, BOTH, two_receivers},
	{"G21", S, BOTH, splice_part},
	{"G22", V, BOTH, splice_nonblock},
	{"G23", V, BOTH, splice_empty},
	{"G24", S, BOTH, splice_zero},
	{"G25", S, BOTH, sendfile_from},
	{"G26", S, BOTH, sizes},
	{"G27", S, BOTH, fork_and_dup},
	{"G28", S, BOTH, passed_by_rights},
};
GUEST_MAIN(cases)
