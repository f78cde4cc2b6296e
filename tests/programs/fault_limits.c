/* fault_limits: no descriptors left, no memory left, and very many of everything in a row. */
#include "check.h"

static int program;

static struct rlimit files;

/* Leaves `left` free numbers. Returns how many placeholders were opened, in `held`. */
static int held[4096], held_count;

static void hold_all_but(int left)
{
	struct rlimit low = {256, files.rlim_max};
	int fd;
	CHECK(setrlimit(RLIMIT_NOFILE, &low) == 0);
	held_count = 0;
	while ((fd = open("/dev/null", O_RDONLY)) >= 0)
		held[held_count++] = fd;
	CHECK(errno == EMFILE && held_count > left);
	while (left--)
		close(held[--held_count]);
}

static void let_go(void)
{
	while (held_count)
		close(held[--held_count]);
	CHECK(setrlimit(RLIMIT_NOFILE, &files) == 0);
}

static void send_one(int peer, char c)
{
	char data[8];
	CHECK(write(peer, data, p4(data, 4, c)) == 8);
}

static void get_one(int k, char c)
{
	char buf[64];
	CHECK(recv(k, buf, sizeof buf, 0) == 8 && buf[4] == c);
}

/* Every call that makes a descriptor says EMFILE and changes nothing. */
static void no_files_to_make(void)
{
	hold_all_but(0);
	FAILS(socket(AF_KCM, SOCK_DGRAM, 0), EMFILE);
	let_go();
	int k = kcm(SOCK_DGRAM);
	hold_all_but(0);
	FAILS(clone_kcm(k), EMFILE);
	let_go();
	int c = clone_kcm(k);
	CHECK(c >= 0);
	struct pair t = attached(k, program);
	send_one(t.p, 'a');
	char buf[64];
	CHECK(ready(k, POLLIN, 5000) || ready(c, POLLIN, 5000));
	CHECK(recv(k, buf, sizeof buf, DW) == 8 || recv(c, buf, sizeof buf, DW) == 8);
}

/* attach needs no number of its own, whatever starts behind it; messages flow all the same. */
static void attached_without_files(void)
{
	int k = kcm(SOCK_DGRAM);
	struct pair t = pair();
	hold_all_but(0);
	CHECK(attach(k, t.a, program) == 0);
	send_one(t.p, 'a');
	usleep(20000);
	char buf[64];
	CHECK(recv(k, buf, sizeof buf, DW) == 8 && buf[4] == 'a');
	CHECK(send(k, "\0\0\0\4wxyz", 8, DW) == 8);
	let_go();
	CHECK(recv(t.p, buf, sizeof buf, 0) == 8);
	/* With numbers to spare a receiver can sleep again. */
	CHECK(set_timeout(k, SO_RCVTIMEO, 5000) == 0);
	send_one(t.p, 'b');
	get_one(k, 'b');
	/* And a second connection of the same mux is served while nobody calls. */
	struct pair u = attached(k, program);
	send_one(u.p, 'c');
	get_one(k, 'c');
}

/* The program closes the number that the connection works through, with none to move to. */
static void closed_without_files(void)
{
	for (int way = 0; way < 3; way++) {
		int k = kcm(SOCK_DGRAM);
		struct pair t = attached(k, program);
		send_one(t.p, 'a');
		get_one(k, 'a');
		hold_all_but(0);
		if (way == 0)
			CHECK(close(t.a) == 0);
		else if (way == 1)
			CHECK(close_range(t.a, t.a, 0) == 0);
		else if (dup2(held[0], t.a) < 0)
			CHECK(errno == EMFILE);
		if (way < 2)
			FAILS(close(t.a), EBADF);
		let_go();
		CHECK(set_timeout(k, SO_RCVTIMEO, 5000) == 0);
		send_one(t.p, 'b');
		get_one(k, 'b');
		CHECK(send(k, "\0\0\0\4wxyz", 8, 0) == 8);
		char buf[64];
		CHECK(recv(t.p, buf, sizeof buf, 0) == 8);
		close(k);
		if (way == 2)
			close(t.a);
		/* The last socket of the mux is closed: the connection ends. */
		CHECK(recv(t.p, buf, sizeof buf, 0) == 0);
		close(t.p);
	}
}

static void epoll_without_files(void)
{
	int k = kcm(SOCK_DGRAM), set = epoll_create1(0);
	struct pair t = attached(k, program);
	struct epoll_event e = {.events = EPOLLIN, .data.fd = k};
	hold_all_but(0);
	int added = epoll_ctl(set, EPOLL_CTL_ADD, k, &e);
	CHECK(added == 0 || errno == ENOMEM);
	let_go();
	if (added)
		CHECK(epoll_ctl(set, EPOLL_CTL_ADD, k, &e) == 0);
	send_one(t.p, 'a');
	CHECK(epoll_wait(set, &e, 1, 5000) == 1 && e.data.fd == k);
	get_one(k, 'a');
}

/* Resident memory in KiB. */
static long resident(void)
{
	long pages[2] = {0};
	FILE *f = fopen("/proc/self/statm", "r");
	CHECK(f && fscanf(f, "%ld %ld", &pages[0], &pages[1]) == 2);
	fclose(f);
	return pages[1] * 4;
}

#define SLACK_KIB 512

static void attach_cycles(void)
{
	int k = kcm(SOCK_DGRAM);
	struct pair t = pair();
	long memory = 0;
	int fds = 0;
	for (int i = 0; i < 100000; i++) {
		CHECK(attach(k, t.a, program) == 0);
		CHECK(unattach(k, t.a) == 0);
		if (i == 10000)
			memory = resident(), fds = open_fd_count();
	}
	CHECK(resident() - memory < SLACK_KIB && open_fd_count() == fds);
	CHECK(attach(k, t.a, program) == 0);
	send_one(t.p, 'z');
	get_one(k, 'z');
}

static void socket_cycles(void)
{
	long memory = 0;
	int fds = 0;
	for (int i = 0; i < 100000; i++) {
		int k = kcm(i & 1 ? SOCK_DGRAM : SOCK_SEQPACKET), c = i % 4 ? -1 : clone_kcm(k);
		CHECK(k >= 0 && close(k) == 0 && (c < 0 || close(c) == 0));
		if (i == 10000)
			memory = resident(), fds = open_fd_count();
	}
	CHECK(resident() - memory < SLACK_KIB && open_fd_count() == fds);
}

/* Everything of one connection's life, with data in every queue when it ends. */
static void connection_cycles(void)
{
	long memory = 0;
	int fds = 0;
	for (int i = 0; i < 3000; i++) {
		int k = kcm(SOCK_DGRAM), set = epoll_create1(0);
		struct pair t = attached(k, program);
		struct epoll_event e = {.events = EPOLLIN};
		CHECK(epoll_ctl(set, EPOLL_CTL_ADD, k, &e) == 0);
		send_one(t.p, 'a');
		CHECK(epoll_wait(set, &e, 1, 5000) == 1);
		send_one(t.p, 'b');
		CHECK(send(k, "\0\0\0\4wx", 6, MSG_MORE) == 6);
		if (i % 3 == 0)
			reset(t.p);
		close(i & 1 ? k : set);
		close(i & 1 ? set : k);
		close(t.a);
		if (i % 3)
			close(t.p);
		if (i == 1000)
			memory = resident(), fds = open_fd_count();
	}
	CHECK(resident() - memory < SLACK_KIB && open_fd_count() == fds);
}

/* A send larger than the memory there is fails; the socket goes on. */
static void no_memory(void)
{
	const size_t big = 1500u << 20;
	int k = kcm(SOCK_DGRAM);
	attached(k, program);
	char *data = mmap(NULL, big, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	CHECK(data != MAP_FAILED);
	struct rlimit before, low;
	long pages;
	FILE *f = fopen("/proc/self/statm", "r");
	CHECK(f && fscanf(f, "%ld", &pages) == 1);
	fclose(f);
	CHECK(getrlimit(RLIMIT_AS, &before) == 0);
	low = before;
	low.rlim_cur = pages * 4096 + (64 << 20);
	CHECK(setrlimit(RLIMIT_AS, &low) == 0);
	/* Nothing is free to take it: it would have to be copied. */
	ssize_t sent = send(k, data, big, DW | MSG_MORE);
	CHECK(sent == -1 && (errno == ENOMEM || errno == EAGAIN || errno == ENOBUFS));
	/* The connection takes the beginning, the rest has no place. */
	sent = send(k, data, big, DW);
	CHECK(sent == (ssize_t)big || (errno == ENOMEM || errno == EAGAIN || errno == ENOBUFS));
	CHECK(setrlimit(RLIMIT_AS, &before) == 0);
	struct pair u = attached(k, program);
	CHECK(set_timeout(k, SO_RCVTIMEO, 5000) == 0);
	send_one(u.p, 'a');
	get_one(k, 'a');
}

/* Everything that grows says ENOMEM when there is no more, again and again, and what was there before
 * works on as soon as there is memory. */
static void nothing_left(void)
{
	static struct pollfd entries[1000];
	int k = kcm(SOCK_DGRAM), other = kcm(SOCK_DGRAM), set = epoll_create1(0), refused[5] = {0};
	struct pair t = attached(k, program);
	struct rlimit before, low;
	CHECK(getrlimit(RLIMIT_AS, &before) == 0);
	low = before;
	low.rlim_cur = 1;
	for (size_t i = 0; i < sizeof entries / sizeof *entries; i++)
		entries[i] = (struct pollfd){k, POLLIN, 0};
	send_one(t.p, 'a');
	get_one(k, 'a');
	CHECK(setrlimit(RLIMIT_AS, &low) == 0);
	for (int i = 0; i < 3000; i++) {
		struct epoll_event e = {.events = EPOLLIN};
		struct timeval now = {0};
		char data[8];
		fd_set fds;
		FD_ZERO(&fds);
		FD_SET(k, &fds);
		int made = i % 2 ? clone_kcm(other) : socket(AF_KCM, SOCK_DGRAM, 0);
		CHECK(made >= 0 || errno == ENOMEM || errno == EMFILE);
		refused[0] += made < 0 && errno == ENOMEM;
		int added = made < 0 ? 0 : epoll_ctl(set, EPOLL_CTL_ADD, made, &e);
		CHECK(added == 0 || errno == ENOMEM || errno == EMFILE);
		int polled = poll(entries, sizeof entries / sizeof *entries, 0);
		CHECK(polled >= 0 || errno == ENOMEM);
		refused[1] += polled < 0;
		int selected = select(k + 1, &fds, NULL, NULL, &now);
		CHECK(selected >= 0 || errno == ENOMEM);
		refused[2] += selected < 0;
		CHECK(write(t.p, data, p4(data, 4, 'b')) == 8);
		ssize_t got = recv(k, data, sizeof data, DW);
		CHECK(got == 8 || (got < 0 && (errno == ENOMEM || errno == EAGAIN)));
		refused[3] += got < 0 && errno == ENOMEM;
		refused[4] += got == 8;
	}
	CHECK(setrlimit(RLIMIT_AS, &before) == 0);
	CHECK(refused[0] && refused[1] && refused[2]);
	CHECK(set_timeout(k, SO_RCVTIMEO, 5000) == 0);
	for (int left = 3000 - refused[4]; left; left--)
		get_one(k, 'b');
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} parts[] = {
		{"no_files_to_make", no_files_to_make}, {"attached_without_files", attached_without_files},
		{"closed_without_files", closed_without_files}, {"epoll_without_files", epoll_without_files},
		{"attach_cycles", attach_cycles}, {"socket_cycles", socket_cycles},
		{"connection_cycles", connection_cycles}, {"no_memory", no_memory},
		{"nothing_left", nothing_left}};
	hang_guard("fault_limits");
	CHECK(getrlimit(RLIMIT_NOFILE, &files) == 0);
	program = prog_p4();
	for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
		if (argc < 2 || !strcmp(argv[1], parts[i].name))
			parts[i].run();
	return 0;
}
