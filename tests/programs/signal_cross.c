/* signal_cross: two threads receive, each from its own socket, and the handler of each looks into the
 * socket of the other: neither waits for a lock that the other one's thread has been interrupted under. */
#include "check.h"

enum { THREADS = 2, MESSAGES = 2000, SIGNALS = 1000 };

static int sockets[THREADS], peers[THREADS];
static pthread_t threads[THREADS];
static volatile int over;
static volatile unsigned received[THREADS], handled[THREADS];
static __thread int me;

static void look_across(int sig)
{
	int saved = errno;
	char buf[16];
	(void)sig;
	handled[me]++;
	if (recv(sockets[!me], buf, sizeof buf, MSG_DONTWAIT | MSG_PEEK) < 0)
		CHECK(errno == EAGAIN);
	errno = saved;
}

static void *receive(void *arg)
{
	char buf[16];
	me = *(int *)arg;
	while (received[me] < MESSAGES || !over) {
		ssize_t got = recv(sockets[me], buf, sizeof buf, MSG_DONTWAIT);
		CHECK(got == 8 || (got < 0 && errno == EAGAIN));
		received[me] += got == 8;
	}
	return NULL;
}

static void *give(void *arg)
{
	char data[8];
	int to = peers[*(int *)arg];
	size_t len = p4(data, 4, 'x');
	for (int n = 0; n < MESSAGES; n++)
		CHECK(write(to, data, len) == (ssize_t)len);
	return NULL;
}

int main(void)
{
	struct sigaction act = {.sa_handler = look_across, .sa_flags = SA_RESTART};
	static int numbers[THREADS] = {0, 1};
	hang_guard("signal_cross");
	CHECK(!sigaction(SIGUSR1, &act, NULL));
	for (int n = 0; n < THREADS; n++) {
		sockets[n] = kcm(SOCK_DGRAM);
		peers[n] = attached(sockets[n], prog_p4()).p;
	}
	for (int n = 0; n < THREADS; n++) {
		threads[n] = spawn(receive, &numbers[n]);
		spawn(give, &numbers[n]);
	}
	while (handled[0] < SIGNALS || handled[1] < SIGNALS)
		for (int n = 0; n < THREADS; n++)
			pthread_kill(threads[n], SIGUSR1);
	over = 1;
	for (int n = 0; n < THREADS; n++)
		CHECK(!pthread_join(threads[n], NULL));
	return 0;
}
