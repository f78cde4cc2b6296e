/* fault_taken: connections whose numbers are taken away while threads read them. Four threads receive on
 * a KCM socket and its clones. Meanwhile the program closes the numbers of the connections, or puts
 * something else there, and sockets full of other bytes get them at once. Each message arrives once,
 * and nothing else does. */
#include "check.h"
#include <stdatomic.h>

enum { CONNECTIONS = 4, RECEIVERS = 4, EACH = 20000, AT_ONCE = 250, ROUNDS = 150, TAKERS = 8 };

struct message {
	unsigned length, conn, number; /* P4: the bytes that follow, in network order */
};

static int kcms[RECEIVERS];
static struct pair conns[CONNECTIONS];
static atomic_uchar seen[CONNECTIONS][EACH];
static atomic_int received;

static int all_here(void)
{
	return atomic_load(&received) >= CONNECTIONS * EACH;
}

static void note(const struct message *m)
{
	CHECK(m->length == htonl(8) && m->conn < CONNECTIONS && m->number < EACH);
	CHECK(atomic_exchange(&seen[m->conn][m->number], 1) == 0);
	atomic_fetch_add(&received, 1);
}

static void *bring(void *arg)
{
	unsigned c = (intptr_t)arg;
	struct message some[AT_ONCE];
	for (unsigned first = 0; first < EACH; first += AT_ONCE) {
		for (unsigned i = 0; i < AT_ONCE; i++)
			some[i] = (struct message){htonl(8), c, first + i};
		CHECK(write(conns[c].p, some, sizeof some) == sizeof some);
	}
	return NULL;
}

static void *receive(void *arg)
{
	int fd = kcms[(intptr_t)arg];
	struct message m;
	while (!all_here()) {
		ssize_t got = recv(fd, &m, sizeof m, 0);
		CHECK(got == sizeof m || (got < 0 && errno == EAGAIN));
		if (got > 0)
			note(&m);
	}
	return NULL;
}

/* The next numbers, and so the one just closed, are sockets with bytes that no connection brings. */
static void take_numbers(int takers[TAKERS])
{
	static const char other[4096] = {[0 ... 4095] = 'x'};
	for (int i = 0; i < TAKERS; i += 2) {
		CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, takers + i) == 0);
		CHECK(write(takers[i], other, sizeof other) == sizeof other);
		CHECK(write(takers[i + 1], other, sizeof other) == sizeof other);
	}
}

static void one_round(unsigned round, int program)
{
	pthread_t threads[CONNECTIONS + RECEIVERS];
	int takers[TAKERS];
	size_t count = 0;
	memset(seen, 0, sizeof seen);
	received = 0;
	for (int i = 0; i < RECEIVERS; i++) {
		kcms[i] = i ? clone_kcm(kcms[0]) : kcm(SOCK_DGRAM);
		CHECK(kcms[i] >= 0 && set_timeout(kcms[i], SO_RCVTIMEO, 5) == 0);
	}
	for (int c = 0; c < CONNECTIONS; c++)
		conns[c] = attached(kcms[0], program);
	for (intptr_t i = 0; i < RECEIVERS; i++)
		threads[count++] = spawn(receive, (void *)i);
	for (intptr_t c = 0; c < CONNECTIONS; c++)
		threads[count++] = spawn(bring, (void *)c);
	while (atomic_load(&received) < (int)(round * 997 % (2 * EACH)))
		;
	CHECK(close(conns[0].a) == 0 && close(conns[1].a) == 0);
	take_numbers(takers);
	CHECK(dup2(takers[0], conns[2].a) == conns[2].a && dup2(takers[1], conns[3].a) == conns[3].a);
	while (count)
		pthread_join(threads[--count], NULL);
	for (int i = 0; i < TAKERS; i++)
		close(takers[i]);
	for (int c = 0; c < CONNECTIONS; c++) {
		if (c > 1)
			close(conns[c].a);
		close(conns[c].p);
	}
	for (int i = 0; i < RECEIVERS; i++)
		close(kcms[i]);
}

int main(void)
{
	int program = prog_p4();
	hang_guard("fault_taken");
	for (unsigned round = 0; round < ROUNDS; round++)
		one_round(round, program);
	return 0;
}
