/* soak [SECONDS]: a KCM service under load, round after round for so long. In each round connections
 * come over loopback TCP, bring numbered messages and leave, some with a reset; threads receive them
 * on the shared socket and on clones, by recv and by epoll; child processes, forked while all this
 * goes on, receive too and end, one of them by kill -9; programs are started meanwhile. Every message
 * arrives once. Once everything has had its turn often enough, neither resident memory, nor mappings,
 * nor descriptors, nor processes become more. */
#include "usage.h"
#include <spawn.h>
#include <stdatomic.h>

enum {
	CONNECTIONS = 4,
	EACH = 1500, /* messages a connection */
	RECEIVERS = 2,
	CHILDREN = 2,
	WARM_ROUNDS = 25, /* until doorbells, chunks and arenas are as many as they will be */
	SLACK_KIB = 5120, /* 64 spare chunks of 64 KiB and some */
	PATIENCE_MS = 5 /* between two looks at whether the round is over */
};

/* What the processes of a round know together. */
static struct {
	atomic_uchar seen[CONNECTIONS][EACH];
	atomic_int received;
} *common;

static int k, program, listener;
static struct sockaddr_in where;

static int over(void)
{
	return atomic_load(&common->received) >= CONNECTIONS * EACH;
}

/* A message is the length of the rest, the connection and its number there. */
struct message {
	uint32_t rest, from, number;
};

static void account(const struct message *m, ssize_t len)
{
	CHECK(len == sizeof *m && m->from < CONNECTIONS && m->number < EACH);
	CHECK(atomic_exchange(&common->seen[m->from][m->number], 1) == 0);
	atomic_fetch_add(&common->received, 1);
}

static void *client(void *arg)
{
	unsigned from = (intptr_t)arg, seed = from + 1, sent = 0;
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	CHECK(fd >= 0 && connect(fd, (void *)&where, sizeof where) == 0);
	while (sent < EACH) {
		struct message some[32];
		unsigned count = 1 + rand_r(&seed) % 32;
		if (count > EACH - sent)
			count = EACH - sent;
		for (unsigned i = 0; i < count; i++)
			some[i] = (struct message){htonl(8), from, sent + i};
		/* In two writes, the cut anywhere. */
		size_t len = count * sizeof *some, cut = rand_r(&seed) % len;
		CHECK(write(fd, some, cut) == (ssize_t)cut);
		CHECK(write(fd, (char *)some + cut, len - cut) == (ssize_t)(len - cut));
		sent += count;
	}
	while (!over())
		usleep(PATIENCE_MS * 1000);
	if (from % 2)
		reset(fd);
	else
		close(fd);
	return NULL;
}

static void receive_on(int fd)
{
	struct message m;
	while (!over()) {
		ssize_t got = recv(fd, &m, sizeof m, 0);
		if (got < 0)
			CHECK(errno == EAGAIN);
		else
			account(&m, got);
	}
}

static void receive_some_by_epoll(int fd, int some)
{
	struct epoll_event e = {.events = EPOLLIN | (some % 2 ? EPOLLET : 0)};
	struct message m;
	int set = epoll_create1(EPOLL_CLOEXEC);
	CHECK(set >= 0 && epoll_ctl(set, EPOLL_CTL_ADD, fd, &e) == 0);
	while (some > 0 && !over()) {
		if (epoll_wait(set, &e, 1, PATIENCE_MS) < 1)
			continue;
		for (ssize_t got; (got = recv(fd, &m, sizeof m, DW)) >= 0; some--)
			account(&m, got);
		CHECK(errno == EAGAIN);
	}
	close(set);
}

static void *receiver(void *arg)
{
	unsigned seed = (intptr_t)arg;
	while (!over()) {
		int fd = clone_kcm(k);
		CHECK(fd >= 0);
		receive_some_by_epoll(fd, 20 + rand_r(&seed) % 200);
		close(fd);
	}
	return NULL;
}

static pid_t child(int lives_on)
{
	pid_t pid = fork();
	CHECK(pid >= 0);
	if (pid)
		return pid;
	hang_guard("a child of soak");
	/* Nothing but k: what is steered to a clone would wait for a reader that does not exist. */
	close_range(3, k - 1, 0);
	close_range(k + 1, ~0U, 0);
	receive_on(k);
	if (lives_on)
		pause();
	_exit(0);
}

static void start_a_program(void)
{
	char *argv[] = {"true", NULL};
	extern char **environ;
	pid_t pid;
	int status;
	CHECK(posix_spawn(&pid, "/bin/true", NULL, NULL, argv, environ) == 0);
	CHECK(waitpid(pid, &status, 0) == pid && status == 0);
}

static void one_round(unsigned round)
{
	pthread_t threads[CONNECTIONS + RECEIVERS];
	pid_t children[CHILDREN];
	int conns[CONNECTIONS], count = 0, status;
	memset(common, 0, sizeof *common);
	k = kcm(round % 2 ? SOCK_DGRAM : SOCK_SEQPACKET);
	CHECK(k >= 0 && set_timeout(k, SO_RCVTIMEO, PATIENCE_MS) == 0);
	for (intptr_t c = 0; c < CONNECTIONS; c++)
		threads[count++] = spawn(client, (void *)c);
	for (intptr_t r = 0; r < RECEIVERS; r++)
		threads[count++] = spawn(receiver, (void *)(r + round * RECEIVERS));
	for (int c = 0; c < CONNECTIONS; c++) {
		conns[c] = accept(listener, NULL, NULL);
		CHECK(conns[c] >= 0 && attach(k, conns[c], program) == 0);
		/* Two children with some connections before and some after them. */
		if (round % 4 < 2 && c < CHILDREN)
			children[c] = child(c);
	}
	if (round % 4 == 1)
		start_a_program();
	receive_on(k);
	while (count)
		pthread_join(threads[--count], NULL);
	for (int c = 0; c < CHILDREN && round % 4 < 2; c++) {
		if (c)
			kill(children[c], SIGKILL);
		CHECK(waitpid(children[c], &status, 0) == children[c]);
		CHECK(c ? WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL : status == 0);
	}
	for (int c = 0; c < CONNECTIONS; c++)
		close(conns[c]);
	close(k);
}

int main(int argc, char **argv)
{
	long end = now_ms() + (argc > 1 ? atol(argv[1]) : 0) * 1000;
	struct usage warm = {0};
	socklen_t len = sizeof where;
	unsigned round = 0;
	common = mmap(NULL, sizeof *common, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	where = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	listener = socket(AF_INET, SOCK_STREAM, 0);
	CHECK(bind(listener, (void *)&where, sizeof where) == 0 && listen(listener, CONNECTIONS) == 0);
	CHECK(getsockname(listener, (void *)&where, &len) == 0);
	program = prog_p4();
	do {
		hang_guard("soak");
		one_round(round++);
		if (round == WARM_ROUNDS)
			warm = usage();
	} while (round <= WARM_ROUNDS || now_ms() < end);
	printf("%u rounds, %d messages each: ", round, CONNECTIONS * EACH);
	check_steady(warm, usage(), SLACK_KIB);
	CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
	return 0;
}
