/* ctl_guest.c: a KCM socket that has received three messages and sent one, and was refused a bind;
 * waits for the end of standard input. Prints the numbers of its KCM and its TCP descriptor. */
#include "check.h"

int main(void)
{
	int k = kcm(SOCK_DGRAM);
	struct pair ends = pair();
	int parser = prog_const(8);
	CHECK(k >= 0 && attach(k, ends.a, parser) == 0);
	struct sockaddr address = {.sa_family = AF_UNIX};
	FAILS(bind(k, &address, sizeof address), EOPNOTSUPP);
	FAILS(bind(k, &address, sizeof address), EOPNOTSUPP);
	char got[64];
	put(ends.p, "message1message2message3", 24);
	for (int i = 0; i < 3; i++)
		CHECK(recv(k, got, sizeof got, 0) == 8);
	CHECK(send(k, "answer", 6, 0) == 6);
	printf("%d %d\n", k, ends.a);
	fflush(stdout);
	while (read(0, got, sizeof got) > 0)
		;
	return 0;
}
