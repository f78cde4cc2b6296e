/* signal_handlers: a handler calls recv, send, poll, close and clone on KCM sockets while its own
 * thread is somewhere inside the same calls, thousands of times, and other threads are busy too.
 * Nothing hangs, every message arrives once and in order, and what the handler closed is gone. */
#include "check.h"

enum { MESSAGES = 20000, SPARES = 64 };

static int k, k2, peer, program;
static volatile sig_atomic_t handled, refused;
static volatile int over;
static int spares[SPARES];
static volatile sig_atomic_t spares_left;
static unsigned next_number;

static void take(const char *data, ssize_t got)
{
	unsigned number;
	CHECK(got == 8);
	memcpy(&number, data + 4, sizeof number);
	CHECK(number == next_number);
	next_number++;
}

/* Peeks, so that the interrupted receive goes on as if nothing had happened. */
static void meddle(int sig)
{
	int saved = errno;
	char buf[64];
	struct pollfd p = {.fd = k, .events = POLLIN | POLLOUT};
	(void)sig;
	handled++;
	if (recv(k, buf, sizeof buf, DW | MSG_PEEK) < 0)
		refused += errno != EAGAIN;
	if (send(k2, "\0\0\0\1h", 5, DW) < 0)
		refused += errno != EAGAIN;
	if (poll(&p, 1, 0) < 0)
		refused += errno != EAGAIN;
	if (spares_left > 0) {
		spares_left--;
		refused += close(spares[spares_left]) != 0;
	}
	errno = saved;
}

static pthread_t victim;

static void *bombard(void *arg)
{
	while (!over) {
		pthread_kill(victim, SIGUSR1);
		usleep(50);
	}
	return arg;
}

static void *write_numbers(void *arg)
{
	for (unsigned i = 0; i < MESSAGES; i++) {
		char data[8] = {0, 0, 0, 4};
		memcpy(data + 4, &i, sizeof i);
		CHECK(write(peer, data, 8) == 8);
	}
	return arg;
}

/* What the handler sends must not fill the connection. */
static void *drain_peer(void *arg)
{
	char sink[4096];
	while (recv(*(int *)arg, sink, sizeof sink, 0) > 0)
		;
	return arg;
}

static void *churn(void *arg)
{
	while (!over) {
		int other = clone_kcm(k2);
		struct pollfd p = {.fd = other, .events = POLLIN};
		poll(&p, 1, 0);
		if (other >= 0)
			close(other);
	}
	return arg;
}

int main(void)
{
	struct sigaction act = {.sa_handler = meddle, .sa_flags = SA_RESTART};
	hang_guard("signal_handlers");
	program = prog_p4();
	k = kcm(SOCK_DGRAM);
	k2 = kcm(SOCK_DGRAM);
	struct pair t = attached(k, program), u = attached(k2, program);
	peer = t.p;
	int before = open_fd_count();
	CHECK(sigaction(SIGUSR1, &act, NULL) == 0);
	victim = pthread_self();
	pthread_t threads[] = {spawn(bombard, NULL), spawn(write_numbers, NULL), spawn(drain_peer, &u.p), spawn(churn, NULL)};
	while (next_number < MESSAGES) {
		char buf[64];
		struct pollfd p = {.fd = k, .events = POLLIN};
		if (spares_left == 0) {
			for (int i = 0; i < SPARES; i++)
				while ((spares[i] = i % 2 ? clone_kcm(k2) : kcm(SOCK_DGRAM)) < 0)
					CHECK(errno == EAGAIN);
			spares_left = SPARES;
		}
		if (next_number % 3 == 0)
			poll(&p, 1, 100);
		ssize_t got = recv(k, buf, sizeof buf, next_number % 2 ? 0 : DW);
		if (got < 0)
			CHECK(errno == EAGAIN);
		else
			take(buf, got);
	}
	over = 1;
	pthread_join(threads[0], NULL);
	pthread_join(threads[1], NULL);
	pthread_join(threads[3], NULL);
	CHECK(refused == 0 && handled > 0);
	while (spares_left > 0)
		CHECK(close(spares[--spares_left]) == 0);
	shutdown(u.a, SHUT_RDWR);
	pthread_join(threads[2], NULL);
	/* What handlers could not take down is taken down by now or very soon; the doorbell stays. */
	for (int i = 0; i < 200 && open_fd_count() > before + 3; i++)
		usleep(10000);
	CHECK(open_fd_count() <= before + 3);
	return 0;
}
