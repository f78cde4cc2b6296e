/* proc_reader.c: a program that knows nothing but read and write: echoes one message of the socket
 * it inherits as descriptor 50. */
#include <poll.h>
#include <unistd.h>

int main(void)
{
	char bytes[256];
	struct pollfd entry = {.fd = 50, .events = POLLIN};
	if (poll(&entry, 1, 5000) != 1)
		return 1;
	ssize_t len = read(50, bytes, sizeof bytes);
	if (len <= 0)
		return 2;
	return write(50, bytes, len) == len ? 0 : 3;
}
