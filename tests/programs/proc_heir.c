/* proc_heir.c: a program that inherits a KCM socket as descriptor 50 and finds all of KCM there: what
 * proc_exec.c starts. */
#include "check.h"

enum { INHERITED = 50 };

/* Echoes one message. */
static void echo(void)
{
	unsigned char bytes[64];
	CHECK(ready(INHERITED, POLLIN, 5000));
	ssize_t len = recv(INHERITED, bytes, sizeof bytes, 0);
	CHECK(len > 0);
	CHECK(send(INHERITED, bytes, len, MSG_EOR) == len);
}

/* The socket says that it is one. */
static void is_kcm(void)
{
	struct sockaddr_storage at;
	socklen_t len = sizeof at;
	CHECK(get_int(INHERITED, SOL_SOCKET, SO_DOMAIN) == AF_KCM);
	CHECK(get_int(INHERITED, SOL_SOCKET, SO_TYPE) == SOCK_SEQPACKET);
	FAILS(getsockname(INHERITED, (struct sockaddr *)&at, &len), EOPNOTSUPP);
	FAILS(getpeername(INHERITED, (struct sockaddr *)&at, &len), EOPNOTSUPP);
	FAILS(listen(INHERITED, 1), EOPNOTSUPP);
	CHECK(get_int(INHERITED, SOL_KCM, KCM_RECV_DISABLE) == 0);
	CHECK(!recv_disable(INHERITED, 1) && get_int(INHERITED, SOL_KCM, KCM_RECV_DISABLE) == 1);
	CHECK(!recv_disable(INHERITED, 0));
}

/* Its mux takes more sockets and connections. */
static void grows(void)
{
	unsigned char bytes[64];
	size_t len = p4(bytes, 8, 'g');
	int other = clone_kcm(INHERITED), set = epoll_create1(0);
	struct epoll_event event = {.events = EPOLLIN};
	struct pair own = attached(INHERITED, prog_p4());
	int both[] = {INHERITED, other};
	CHECK(other >= 0);
	for (int i = 0; i < 2; i++) {
		event.data.fd = both[i];
		CHECK(!epoll_ctl(set, EPOLL_CTL_ADD, both[i], &event));
	}
	CHECK(write(own.p, bytes, len) == (ssize_t)len);
	CHECK(epoll_wait(set, &event, 1, 5000) == 1);
	CHECK(recv(event.data.fd, bytes, sizeof bytes, MSG_DONTWAIT) == (ssize_t)len);
	CHECK(!unattach(other, own.a));
}

int main(void)
{
	hang_guard("proc_heir");
	is_kcm();
	echo();
	grows();
	return 0;
}
