/* proc_family.c: KCM sockets that several processes hold.  Checks itself; each check is one of the
 * functions of the table at the end, named on the command line. */
#include "check.h"
#include "guest.h"
#include <spawn.h>

enum { CHILDREN = 4, MESSAGES = 2000, KILLS = 40, HEAD = 4, BODY = 8, REPLIES = 200 };

extern char **environ;

/* What children tell the parent, in memory they share. */
static struct shared {
	_Atomic unsigned seen[MESSAGES];
	_Atomic unsigned total;
	_Atomic int over;
} *shared;

/* fork(2) of a process that ends by itself. */
static pid_t start(void)
{
	fflush(NULL);
	pid_t pid = fork();
	if (!pid)
		hang_guard("a child of proc_family");
	return pid;
}

static int k, extra;
static struct pair t;

static void open_family(int type)
{
	shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(shared != MAP_FAILED);
	k = kcm(type);
	t = attached(k, prog_p4());
	extra = clone_kcm(k);
}

/* The message with number n. */
static size_t numbered(unsigned char *to, unsigned n)
{
	uint32_t words[3] = {htonl(BODY), htonl(n), htonl(~n)};
	memcpy(to, words, sizeof words);
	return sizeof words;
}

static void send_numbers(int peer, unsigned first, unsigned count)
{
	unsigned char bytes[HEAD + BODY];
	for (unsigned n = first; n < first + count; n++) {
		size_t len = numbered(bytes, n);
		CHECK(write(peer, bytes, len) == (ssize_t)len);
	}
}

static void count_message(const unsigned char *bytes, ssize_t len)
{
	uint32_t words[3];
	CHECK(len == sizeof words);
	memcpy(words, bytes, sizeof words);
	unsigned n = ntohl(words[1]);
	CHECK(ntohl(words[0]) == BODY && n == ~ntohl(words[2]) && n < MESSAGES);
	shared->seen[n]++;
	shared->total++;
}

/* Each child of a family receives in its own way. */
static int socket_of_child(int index)
{
	switch (index % CHILDREN) {
	case 0:
	case 3:
		return k;
	case 1:
		return extra;
	default:
		return clone_kcm(k);
	}
}

static void receive_until_over(int index)
{
	unsigned char bytes[64];
	int fd = socket_of_child(index), set = epoll_create1(0);
	struct epoll_event event = {.events = EPOLLIN};
	CHECK(fd >= 0);
	CHECK(!epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
	while (!shared->over) {
		struct pollfd entry = {.fd = fd, .events = POLLIN};
		ssize_t len;
		if (index % CHILDREN == 3)
			epoll_wait(set, &event, 1, 20);
		else
			poll(&entry, 1, 20);
		while ((len = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT)) > 0)
			count_message(bytes, len);
		CHECK(len < 0 && errno == EAGAIN);
	}
	_exit(0);
}

static pid_t start_child(int index)
{
	pid_t pid = start();
	CHECK(pid >= 0);
	if (!pid)
		receive_until_over(index);
	return pid;
}

static void wait_for_total(unsigned total)
{
	for (int ms = 0; shared->total < total && ms < 10000; ms++)
		usleep(1000);
}

static void end_children(pid_t *pids)
{
	int status;
	shared->over = 1;
	for (int i = 0; i < CHILDREN; i++) {
		CHECK(waitpid(pids[i], &status, 0) == pids[i]);
		CHECK(WIFEXITED(status) && !WEXITSTATUS(status));
	}
}

/* Every message goes to exactly one process. */
static void prefork_receives(void)
{
	pid_t pids[CHILDREN];
	open_family(SOCK_DGRAM);
	for (int i = 0; i < CHILDREN; i++)
		pids[i] = start_child(i);
	send_numbers(t.p, 0, MESSAGES);
	wait_for_total(MESSAGES);
	end_children(pids);
	for (int n = 0; n < MESSAGES; n++)
		CHECK(shared->seen[n] == 1);
}

/* Sends a family's share of numbers; the children with sockets of their own send in parts. */
static void send_share(int index)
{
	unsigned char bytes[HEAD + BODY];
	int fd = socket_of_child(index), parts = fd != k;
	for (unsigned n = 0; n < REPLIES; n++) {
		size_t len = numbered(bytes, index * REPLIES + n);
		if (parts)
			CHECK(send(fd, bytes, HEAD, 0) == HEAD);
		CHECK(send(fd, bytes + parts * HEAD, len - parts * HEAD, MSG_EOR) == (ssize_t)(len - parts * HEAD));
	}
	_exit(0);
}

/* Messages of many processes arrive whole, once, and in order for each sender. */
static void prefork_sends(void)
{
	unsigned char bytes[HEAD + BODY];
	unsigned next[CHILDREN] = {0};
	pid_t pids[CHILDREN];
	open_family(SOCK_SEQPACKET);
	for (int i = 0; i < CHILDREN; i++)
		if (!(pids[i] = start()))
			send_share(i);
	for (int i = 0; i < CHILDREN * REPLIES; i++) {
		CHECK(ready(t.p, POLLIN, 5000));
		CHECK(recv(t.p, bytes, sizeof bytes, MSG_WAITALL) == sizeof bytes);
		count_message(bytes, sizeof bytes);
		uint32_t n;
		memcpy(&n, bytes + HEAD, sizeof n);
		CHECK(ntohl(n) % REPLIES == next[ntohl(n) / REPLIES]++);
	}
	CHECK(!ready(t.p, POLLIN, 50));
	end_children(pids);
}

/* Children that are killed at any instant take at most the one message with them that each was just
 * given; nothing comes twice, and those who live go on. */
static void killed_children(void)
{
	pid_t pids[CHILDREN];
	unsigned seed = 12345, sent = 0, lost = 0, twice = 0;
	open_family(SOCK_DGRAM);
	for (int i = 0; i < CHILDREN; i++)
		pids[i] = start_child(i);
	for (int i = 0; i < KILLS; i++) {
		int victim = rand_r(&seed) % CHILDREN;
		send_numbers(t.p, sent, MESSAGES / KILLS);
		sent += MESSAGES / KILLS;
		usleep(rand_r(&seed) % 3000);
		CHECK(!kill(pids[victim], SIGKILL));
		CHECK(waitpid(pids[victim], NULL, 0) == pids[victim]);
		pids[victim] = start_child(victim);
	}
	wait_for_total(MESSAGES - KILLS);
	for (unsigned before = ~0u; before != shared->total; usleep(100000))
		before = shared->total;
	end_children(pids);
	for (int n = 0; n < MESSAGES; n++) {
		lost += !shared->seen[n];
		twice += shared->seen[n] > 1;
	}
	printf("lost %u, twice %u\n", lost, twice);
	CHECK(lost <= KILLS && !twice);
}

/* The last copies of a socket are closed: what was queued there goes to the parent's. */
static void messages_of_the_dead(void)
{
	unsigned char bytes[64];
	int status, got = 0;
	open_family(SOCK_DGRAM);
	recv_disable(k, 1);
	pid_t pid = start();
	if (!pid) {
		/* The only process that receives: takes one and dies with the rest in its queue. */
		struct pollfd entry = {.fd = extra, .events = POLLIN};
		CHECK(poll(&entry, 1, 5000) == 1);
		usleep(50000);
		CHECK(recv(extra, bytes, sizeof bytes, 0) == HEAD + BODY);
		raise(SIGKILL);
	}
	close(extra);
	send_numbers(t.p, 0, 10);
	CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status));
	recv_disable(k, 0);
	while (ready(k, POLLIN, got ? 200 : 3000) && recv(k, bytes, sizeof bytes, MSG_DONTWAIT) > 0)
		got++;
	CHECK(got == 9);
}

/* The mux outlives the process that made it: the child serves. */
static void serve_one(int fd)
{
	unsigned char bytes[64];
	ssize_t len = recv(fd, bytes, sizeof bytes, 0);
	CHECK(len == HEAD + BODY);
	CHECK(send(fd, bytes, len, MSG_EOR) == len);
}

/* A process forks `leave` and serves in the child, while we are at the other end. */
static void served_by_an_orphan(void (*leave)(void))
{
	unsigned char bytes[64];
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	socklen_t len = sizeof at;
	CHECK(!bind(listener, (struct sockaddr *)&at, len) && !listen(listener, 1));
	CHECK(!getsockname(listener, (struct sockaddr *)&at, &len));
	pid_t pid = start();
	if (!pid) {
		int fd = accept(listener, NULL, NULL), b = prog_p4();
		k = kcm(SOCK_DGRAM);
		CHECK(!attach(k, fd, b));
		leave();
		close(fd);
		serve_one(k);
		serve_one(k);
		_exit(0);
	}
	close(listener);
	int peer = socket(AF_INET, SOCK_STREAM, 0);
	CHECK(!connect(peer, (struct sockaddr *)&at, sizeof at));
	CHECK(waitpid(pid, NULL, 0) == pid);
	for (int n = 0; n < 2; n++) {
		send_numbers(peer, n, 1);
		CHECK(ready(peer, POLLIN, 5000));
		CHECK(read(peer, bytes, sizeof bytes) == HEAD + BODY);
	}
	/* The last holder is gone: so is the mux, and the connection ends. */
	CHECK(ready(peer, POLLIN, 5000));
	CHECK(read(peer, bytes, sizeof bytes) == 0);
}

static void by_daemon(void)
{
	CHECK(!daemon(1, 1));
}

static void by_exit(void)
{
	pid_t pid = start();
	CHECK(pid >= 0);
	if (pid)
		exit(0);
	usleep(100000);
}

static void by_quick_end(void)
{
	pid_t pid = start();
	CHECK(pid >= 0);
	if (pid)
		_exit(0);
}

static void by_quick_exit(void)
{
	pid_t pid = start();
	CHECK(pid >= 0);
	if (pid)
		quick_exit(0);
}

static void by_raw_end(void)
{
	pid_t pid = start();
	CHECK(pid >= 0);
	if (pid)
		syscall(SYS_exit_group, 0);
}

static void child_of_quick_exited_serves(void)
{
	served_by_an_orphan(by_quick_exit);
}

static void child_of_raw_ended_serves(void)
{
	served_by_an_orphan(by_raw_end);
}

static void daemon_serves(void)
{
	served_by_an_orphan(by_daemon);
}

static void child_of_exited_serves(void)
{
	served_by_an_orphan(by_exit);
}

static void child_of_ended_serves(void)
{
	served_by_an_orphan(by_quick_end);
}

static int pass_over(int *fd, int sending)
{
	union {
		char raw[CMSG_SPACE(sizeof(int))];
		struct cmsghdr header;
	} control = {.header = {.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
	char byte = 'x';
	struct iovec iov = {&byte, 1};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	if (sending >= 0) {
		memcpy(CMSG_DATA(&control.header), fd, sizeof *fd);
		return sendmsg(sending, &m, 0) == 1 ? 0 : -1;
	}
	if (recvmsg(-sending, &m, 0) != 1)
		return -1;
	memcpy(fd, CMSG_DATA(&control.header), sizeof *fd);
	return 0;
}

/* A socket travels to a process that never had it. */
static void rights_to_another_process(void)
{
	int ends[2], fd;
	unsigned char bytes[64];
	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
	pid_t pid = start();
	if (!pid) {
		close(ends[0]);
		CHECK(!pass_over(&fd, -ends[1]));
		int type;
		socklen_t len = sizeof type;
		CHECK(!getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) && type == SOCK_SEQPACKET);
		serve_one(fd);
		int other = clone_kcm(fd);
		CHECK(other >= 0);
		close(fd);
		serve_one(other);
		_exit(0);
	}
	close(ends[1]);
	open_family(SOCK_SEQPACKET);
	close(extra);
	CHECK(!pass_over(&k, ends[0]));
	close(k);
	for (int n = 0; n < 2; n++) {
		send_numbers(t.p, n, 1);
		CHECK(ready(t.p, POLLIN, 5000));
		CHECK(read(t.p, bytes, sizeof bytes) == HEAD + BODY);
	}
	int status;
	CHECK(waitpid(pid, &status, 0) == pid && !status);
}

/* Helpers that never use the sockets they inherit do no harm. */
static void helpers(void)
{
	unsigned char bytes[64];
	char line[16], *const words[] = {"true", NULL};
	pid_t pid;
	int status;
	open_family(SOCK_DGRAM);
	for (int n = 0; n < 3; n++) {
		send_numbers(t.p, n, 1);
		switch (n) {
		case 0:
			CHECK(system("exit 3") == 3 << 8);
			break;
		case 1: {
			FILE *f = popen("echo hello", "r");
			CHECK(f && fgets(line, sizeof line, f) && !strcmp(line, "hello\n") && !pclose(f));
			break;
		}
		default:
			CHECK(!posix_spawnp(&pid, "true", NULL, NULL, words, environ));
			CHECK(waitpid(pid, &status, 0) == pid && !status);
		}
		int fd = ready(k, POLLIN, 2000) ? k : extra;
		CHECK(recv(fd, bytes, sizeof bytes, MSG_DONTWAIT) == HEAD + BODY);
	}
}

/* The program that is executed: echoes one message of its descriptor 50 (proc_reader.c). */
static const char *reader;

static void become_reader(void)
{
	char *const words[] = {(char *)reader, NULL};
	CHECK(dup2(k, 50) == 50);
	execv(reader, words);
	_exit(9);
}


static void exec_reader(void)
{
	unsigned char bytes[64];
	int status;
	open_family(SOCK_DGRAM);
	close(extra);
	pid_t pid = start();
	if (!pid)
		become_reader();
	close(k);
	send_numbers(t.p, 7, 1);
	CHECK(ready(t.p, POLLIN, 5000));
	CHECK(read(t.p, bytes, sizeof bytes) == HEAD + BODY);
	CHECK(waitpid(pid, &status, 0) == pid && !status);
}

/* As above, but it is the owner itself that becomes another program. */
static void owner_becomes_reader(void)
{
	unsigned char bytes[64];
	int status;
	struct pair outside = pair();
	pid_t pid = start();
	if (!pid) {
		k = kcm(SOCK_DGRAM);
		CHECK(!attach(k, outside.a, prog_p4()));
		close(outside.a);
		close(outside.p);
		become_reader();
	}
	close(outside.a);
	send_numbers(outside.p, 7, 1);
	CHECK(ready(outside.p, POLLIN, 5000));
	CHECK(read(outside.p, bytes, sizeof bytes) == HEAD + BODY);
	CHECK(waitpid(pid, &status, 0) == pid && !status);
	CHECK(ready(outside.p, POLLIN, 5000));
	CHECK(read(outside.p, bytes, sizeof bytes) == 0);
}

/* A process that does not have the mux in memory attaches a connection of its own, and takes it back. */
static void child_attaches(void)
{
	unsigned char bytes[64];
	int status;
	open_family(SOCK_SEQPACKET);
	recv_disable(extra, 1);
	pid_t pid = start();
	if (!pid) {
		struct pair own = pair();
		int listener = socket(AF_INET, SOCK_STREAM, 0), program = prog_p4();
		CHECK(!listen(listener, 1));
		FAILS(attach(k, -1, program), ENOENT);
		FAILS(attach(k, own.a, -1), EBADF);
		FAILS(attach(k, own.a, own.p), EINVAL);
		FAILS(attach(k, listener, program), EOPNOTSUPP);
		FAILS(unattach(k, own.a), ENOENT);
		CHECK(!attach(k, own.a, program));
		FAILS(attach(k, own.a, program), EALREADY);
		close(program);
		send_numbers(own.p, 0, 3);
		for (int n = 0; n < 3; n++)
			CHECK(recv(k, bytes, sizeof bytes, 0) == HEAD + BODY);
		/* Bytes behind the head of a message that is not complete stay readable. */
		for (int again = 0; again < 2; again++) {
			numbered(bytes, 3);
			CHECK(write(own.p, bytes, HEAD) == HEAD);
			usleep(50000);
			CHECK(write(own.p, bytes, 7) == 7);
			usleep(50000);
			CHECK(!unattach(k, own.a));
			if (again)
				break;
			CHECK(ready(own.a, POLLIN, 5000));
			CHECK(recv(own.a, bytes, sizeof bytes, 0) == 7);
			CHECK(!attach(k, own.a, prog_p4()));
		}
		/* A second parser finds what the first one left. */
		CHECK(!attach(k, own.a, prog_p4()));
		CHECK(write(own.p, bytes + 7, 5) == 5);
		CHECK(recv(k, bytes, sizeof bytes, 0) == HEAD + BODY);
		count_message(bytes, HEAD + BODY);
		/* The connection stays with the mux when its process is gone. */
		send_numbers(own.p, 4, 1);
		_exit(0);
	}
	CHECK(waitpid(pid, &status, 0) == pid && !status);
	CHECK(ready(k, POLLIN, 5000));
	CHECK(recv(k, bytes, sizeof bytes, 0) == HEAD + BODY);
	count_message(bytes, HEAD + BODY);
	CHECK(shared->seen[3] == 1 && shared->seen[4] == 1);
}

/* Messages longer than a socket between processes takes arrive whole, and what is too long for the
 * receiver is cut off as ever.  Also without the right to raise socket buffers. */
static void long_messages(void)
{
	enum { LONG = 6 << 20 };
	static const size_t lengths[] = {HEAD + 100, 300 << 10, 500 << 10, 2 << 20, LONG};
	static unsigned char sent[LONG], got[LONG + 1];
	int status, limit = 16 << 20;
	pid_t pid = start();
	if (pid) {
		CHECK(waitpid(pid, &status, 0) == pid && !status);
		return;
	}
	if (!getuid())
		CHECK(!setsockopt(kcm(SOCK_DGRAM), SOL_SOCKET, SO_RCVBUFFORCE, &limit, sizeof limit));
	struct pair p = pair();
	if (setsockopt(p.a, SOL_SOCKET, SO_RCVBUFFORCE, &limit, sizeof limit))
		exit(0);
	CHECK(getuid() || !setuid(65534));
	k = kcm(SOCK_DGRAM);
	CHECK(!attach(k, p.a, prog_p4()));
	pid = start();
	if (!pid) {
		fill(sent + HEAD, LONG - HEAD, 1);
		for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
			for (int cut = 0; cut < 2; cut++) {
				struct iovec iov = {got, cut ? 1000 : sizeof got};
				struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
				memset(got, 0, sizeof got);
				ssize_t len = recvmsg(k, &m, 0);
				size_t want = cut && lengths[i] > 1000 ? 1000 : lengths[i];
				CHECK(len == (ssize_t)want);
				CHECK(!(m.msg_flags & MSG_TRUNC) == (want == lengths[i]));
				CHECK(!memcmp(got + HEAD, sent + HEAD, want - HEAD));
			}
		}
		CHECK(recv(k, got, sizeof got, MSG_PEEK) == (ssize_t)lengths[0]);
		CHECK(recv(k, got, sizeof got, 0) == (ssize_t)lengths[0]);
		_exit(0);
	}
	fill(sent + HEAD, LONG - HEAD, 1);
	for (size_t i = 0; i <= sizeof lengths / sizeof *lengths; i++) {
		size_t len = lengths[i % (sizeof lengths / sizeof *lengths)];
		uint32_t head = htonl(len - HEAD);
		for (int twice = 0; twice < (i < sizeof lengths / sizeof *lengths ? 2 : 1); twice++) {
			memcpy(sent, &head, sizeof head);
			for (size_t at = 0; at < len;) {
				ssize_t n = write(p.p, sent + at, len - at);
				CHECK(n > 0);
				at += n;
			}
		}
	}
	CHECK(waitpid(pid, &status, 0) == pid);
	_exit(status ? 1 : 0);
}

/* A socket that stops receiving gives back what only it would have got. */
static void disabled_gives_back(void)
{
	unsigned char bytes[64];
	open_family(SOCK_DGRAM);
	pid_t pid = start();
	if (!pid) {
		/* Its queue is in the kernel from now on. */
		CHECK(recv(k, bytes, sizeof bytes, 0) == HEAD + BODY);
		shared->over = 1;
		while (shared->over == 1)
			usleep(1000);
		CHECK(!recv_disable(shared->over == 2 ? k : extra, 1));
		_exit(0);
	}
	CHECK(!recv_disable(extra, 1));
	send_numbers(t.p, 0, 1);
	while (!shared->over)
		usleep(1000);
	for (int by_child = 0; by_child < 2; by_child++) {
		int from = by_child ? extra : k, to = by_child ? k : extra;
		send_numbers(t.p, 1, 5);
		CHECK(ready(from, POLLIN, 5000));
		usleep(50000);
		CHECK(recv(from, bytes, sizeof bytes, 0) == HEAD + BODY);
		CHECK(!recv_disable(to, 0));
		if (by_child) {
			shared->over = 3;
			CHECK(waitpid(pid, NULL, 0) == pid);
		} else {
			CHECK(!recv_disable(from, 1));
		}
		FAILS(recv(from, bytes, sizeof bytes, MSG_DONTWAIT), EAGAIN);
		for (unsigned n = 2; n < 6; n++) {
			CHECK(ready(to, POLLIN, 5000));
			CHECK(recv(to, bytes, sizeof bytes, MSG_DONTWAIT) == HEAD + BODY);
			CHECK(bytes[7] == n);
		}
	}
}

/* What is left of a mux when the process that has it is killed: the end of a stream for those who receive,
 * EPIPE for those who send. */
static void owner_is_killed(void)
{
	unsigned char bytes[64];
	int ends[2], fd;
	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
	signal(SIGPIPE, SIG_IGN);
	struct pair outside = pair();
	pid_t pid = start();
	if (!pid) {
		k = kcm(SOCK_DGRAM);
		CHECK(!attach(k, outside.a, prog_p4()));
		CHECK(!pass_over(&k, ends[0]));
		pause();
	}
	close(outside.a);
	CHECK(!pass_over(&fd, -ends[1]));
	send_numbers(outside.p, 1, 2);
	CHECK(recv(fd, bytes, sizeof bytes, 0) == HEAD + BODY);
	CHECK(ready(fd, POLLIN, 5000));
	CHECK(!kill(pid, SIGKILL) && waitpid(pid, NULL, 0) == pid);
	/* What was given to the socket before is there. */
	CHECK(ready(fd, POLLIN, 5000));
	CHECK(recv(fd, bytes, sizeof bytes, 0) == HEAD + BODY);
	CHECK(ready(fd, POLLIN, 5000));
	CHECK(recv(fd, bytes, sizeof bytes, 0) == 0);
	FAILS(send(fd, bytes, HEAD + BODY, MSG_EOR), EPIPE);
	FAILS(send(fd, bytes, HEAD, MSG_MORE), EPIPE);
	FAILS(ioctl(fd, SIOCKCMCLONE, &fd), EPIPE);
	CHECK(ready(outside.p, POLLIN, 5000));
	CHECK(read(outside.p, bytes, sizeof bytes) == 0);
}

static const struct {
	const char *name;
	void (*run)(void);
} checks[] = {
	{"prefork_receives", prefork_receives},
	{"prefork_sends", prefork_sends},
	{"killed_children", killed_children},
	{"messages_of_the_dead", messages_of_the_dead},
	{"daemon_serves", daemon_serves},
	{"child_of_exited_serves", child_of_exited_serves},
	{"child_of_ended_serves", child_of_ended_serves},
	{"rights_to_another_process", rights_to_another_process},
	{"helpers", helpers},
	{"child_attaches", child_attaches},
	{"child_of_quick_exited_serves", child_of_quick_exited_serves},
	{"child_of_raw_ended_serves", child_of_raw_ended_serves},
	{"long_messages", long_messages},
	{"disabled_gives_back", disabled_gives_back},
	{"owner_is_killed", owner_is_killed},
	{"exec_reader", exec_reader},
	{"owner_becomes_reader", owner_becomes_reader},
};

int main(int argc, char **argv)
{
	hang_guard("proc_family");
	reader = argc > 2 ? argv[2] : NULL;
	for (size_t i = 0; argc > 1 && i < sizeof checks / sizeof *checks; i++)
		if (!strcmp(argv[1], checks[i].name)) {
			checks[i].run();
			return 0;
		}
	fprintf(stderr, "usage: %s CHECK [READER]\n", argv[0]);
	return 2;
}
