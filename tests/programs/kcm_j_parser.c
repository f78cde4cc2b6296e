/* Section J: the parser program and the assembly of messages from a byte stream. */
#include "guest.h"
#include "guest_proc.h"

static int k;
static struct pair t;

static void open_with(int type, int prog)
{
	k = kcm(type);
	t = attached(k, prog);
}

/* The look for bytes already queued, which attaching schedules, is over: it would take bytes that
 * the parser otherwise leaves in the TCP socket. */
static void open_settled(int type)
{
	open_with(type, prog_p4());
	nap(30);
}

static void spaced(int type)
{
	open_with(type, prog_p4());
	msg(t.p, 8, 'a');
	msg(t.p, 3, 'b');
	msg(t.p, 30, 'c');
	rx(k, 100, 0);
	rx(k, 100, 0);
	rx(k, 100, 0);
}

static void byte_by_byte(int type)
{
	char data[64];
	open_with(type, prog_p4());
	for (int i = 0; i < 2; i++) {
		size_t len = p4(data, 6, 'a' + i);
		for (size_t at = 0; at < len; at++)
			put(t.p, data + at, 1);
	}
	rx(k, 100, 0);
	rx(k, 100, 0);
}

static void split(int type)
{
	char data[64];
	open_with(type, prog_p4());
	p4(data, 6, 'a');
	put(t.p, data, 7);
	rx_none(k);
	put(t.p, data + 7, 3);
	rx(k, 100, 0);
}

static void equal_lengths_one_write(int type)
{
	char data[256];
	size_t len = 0;
	open_with(type, prog_p4());
	for (char c = 'a'; c <= 'e'; c++)
		len += p4(data + len, 8, c);
	put(t.p, data, len);
	LETTERS(k, 5);
}

static void different_lengths_one_write(int type)
{
	char data[256];
	open_with(type, prog_p4());
	size_t len = p4(data, 2, 'a');
	len += p4(data + len, 10, 'b');
	len += p4(data + len, 5, 'c');
	put(t.p, data, len);
	while (rx_none(k) >= 0)
		;
	SO_ERR(t.a);
}

static void tail_and_whole(int type)
{
	char data[256];
	open_with(type, prog_p4());
	size_t len = p4(data, 10, 0x7f);
	len += p4(data + len, 20, 0x7e);
	put(t.p, data, 8);
	put(t.p, data + 8, len - 8);
	while (rx_none(k) >= 0)
		;
	SO_ERR(t.a);
}

static void read_before_attach(int type)
{
	char data[64];
	int b = prog_p4();
	k = kcm(type);
	t = pair();
	PUT(t.p, "\0\0\0\x02skip\0\0\0\x04good");
	R(recv(t.a, data, 8, 0));
	R(attach(k, t.a, b));
	nap(10);
	while (rx_none(k) >= 0)
		;
	SO_ERR(t.a);
}

static void one_byte_messages(int type)
{
	open_with(type, prog_const(1));
	PUT(t.p, "abcdefgh");
	for (int i = 0; i < 8; i++)
		rx(k, 100, 0);
}

static void negative_results(int type)
{
	static const int values[] = {-1, -71, -4095, -5000};
	for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
		open_with(type, prog_const(values[i]));
		PUT(t.p, "abc");
		RL("SO_ERROR", take_so_error(t.a));
		RL("SO_ERROR", take_so_error(t.a));
	}
}

static void huge_result(int type)
{
	open_with(type, prog_const(0x7fffffff));
	PUT(t.p, "abc");
	SO_ERR(t.a);
}

static void result_truncated(int type)
{
	const struct bpf_insn insns[] = {LD_IMM64_LO(0, 5), LD_IMM64_HI(1), EXIT};
	open_with(type, LOAD(insns));
	PUT(t.p, "abcde");
	rx(k, 100, 0);
}

static void raw_errors(int type)
{
	open_with(type, prog_raw());
	PUT(t.p, "\x80\0\0\0");
	say("SO_ERROR %d", take_so_error(t.a));
	open_with(type, prog_raw());
	PUT(t.p, "\xff\xff\xff\xfe");
	say("SO_ERROR %d", take_so_error(t.a));
}

static void wrapped_length(int type)
{
	open_with(type, prog_p4());
	PUT(t.p, "\xff\xff\xff\xff" "abc");
	while (rx_none(k) >= 0)
		;
	SO_ERR(t.a);
}

static void estrpipe_first(int type)
{
	open_with(type, prog_const(-ESTRPIPE));
	PUT(t.p, "not for KCM");
	SO_ERR(t.a);
	drain(t.a, 11);
}

static int prog_estrpipe_late(void)
{
	/* Asks for more below four bytes, then hands the stream back. */
	const struct bpf_insn insns[] = {
		LD_CTX(1, 1, offsetof(struct __sk_buff, len)), JGE_I(1, 4, 2), MOV_I(0, 0), EXIT, MOV_I(0, -ESTRPIPE), EXIT};
	return LOAD(insns);
}

static void estrpipe_late(int type)
{
	open_with(type, prog_estrpipe_late());
	PUT(t.p, "ab");
	PUT(t.p, "cdef");
	SO_ERR(t.a);
	drain(t.a, 4);
}

static int prog_late(int result)
{
	const struct bpf_insn insns[] = {
		LD_CTX(1, 1, offsetof(struct __sk_buff, len)), JGE_I(1, 8, 2), MOV_I(0, 0), EXIT, MOV_I(0, result), EXIT};
	return LOAD(insns);
}

static void result_below_consumed(int type)
{
	for (int result = 3; result <= 5; result++) {
		open_with(type, prog_late(result));
		PUT(t.p, "abcd");
		PUT(t.p, "efgh");
		say("result %d", result);
		if (result < 5)
			rx_none(k);
		else
			rx(k, 100, 0);
		SO_ERR(t.a);
	}
}

static void put_word(int fd, uint32_t value)
{
	uint32_t word = htonl(value);
	put(fd, &word, sizeof word);
}

static void limit_is_rcvbuf(int type)
{
	static const int sizes[] = {0, 4096, 10000, 65536};
	int b = prog_raw();
	for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
		for (int over = 0; over <= 1; over++) {
			k = kcm(type);
			t = pair();
			if (sizes[i])
				set_int(t.a, SOL_SOCKET, SO_RCVBUF, sizes[i]);
			attach(k, t.a, b);
			put_word(t.p, get_int(t.a, SOL_SOCKET, SO_RCVBUF) + over);
			say("set %d, limit plus %d:", sizes[i], over);
			SO_ERR(t.a);
		}
}

static void limit_changes(int type)
{
	static char data[8193];
	uint32_t word;
	open_with(type, prog_raw());
	R(set_int(t.a, SOL_SOCKET, SO_RCVBUF, 4096));
	memset(data, 'x', sizeof data);
	word = htonl(8192);
	memcpy(data, &word, 4);
	put(t.p, data, 8192);
	rx(k, 10000, 0);
	word = htonl(8193);
	memcpy(data, &word, 4);
	if (send(t.p, data, 8193, DW) < 0)
		say("peer send = %s", errno_name(errno));
	nap(20);
	rx_none(k);
	SO_ERR(t.a);
}

static void message_fills_buffer(int type)
{
	static char data[2304];
	uint32_t word = htonl(sizeof data);
	open_with(type, prog_raw());
	R(set_int(t.a, SOL_SOCKET, SO_RCVBUF, 1));
	memset(data, 'x', sizeof data);
	memcpy(data, &word, 4);
	put(t.p, data, sizeof data);
	rx(k, 10000, 0);
}

static void load_beyond(int type)
{
	const struct bpf_insn insns[] = {MOV_R(6, 1), LD_ABS_W(100), EXIT};
	open_with(type, LOAD(insns));
	PUT(t.p, "twelve bytes");
	rx_none(k);
	SO_ERR(t.a);
	drain(t.a, 0);
}

static void load_bytes(int type)
{
	open_with(type, prog_load_bytes());
	PUT(t.p, "ab");
	PUT(t.p, "c\x07" "efg");
	rx(k, 100, 0);
}

static void load_bytes_result(int type)
{
	const struct bpf_insn insns[] = {
		MOV_I(2, 0), MOV_R(3, 10), ADD_I(3, -8), MOV_I(4, 4), CALL(BPF_FUNC_skb_load_bytes), EXIT};
	open_with(type, LOAD(insns));
	PUT(t.p, "ab");
	SO_ERR(t.a);
}

static void length_from_context(int type)
{
	open_with(type, prog_len());
	PUT(t.p, "first");
	rx(k, 100, 0);
	PUT(t.p, "seconds");
	rx(k, 100, 0);
}

static void zero_length(int type)
{
	open_with(type, prog_raw());
	PUT(t.p, "\0\0\0\0");
	rx_none(k);
	PUT(t.p, "more bytes");
	rx_none(k);
	SO_ERR(t.a);
}

static void cb_persists(int type)
{
	/* One byte: cb[0] = 1.  Each further call adds one; at four the message is complete. */
	enum { CB0 = offsetof(struct __sk_buff, cb) };
	const struct bpf_insn insns[] = {
		LD_CTX(2, 1, offsetof(struct __sk_buff, len)), MOV_I(3, 0), JEQ_I(2, 1, 1), LD_CTX(3, 1, CB0),
		ADD_I(3, 1), STX_W(1, CB0, 3), MOV_I(0, 0), JNE_I(3, 4, 1), MOV_I(0, 4), EXIT};
	open_with(type, LOAD(insns));
	for (int i = 0; i < 4; i++)
		put(t.p, "abcd" + i, 1);
	rx(k, 100, 0);
}

static void cb_is_length(int type)
{
	enum { CB4 = offsetof(struct __sk_buff, cb) + 16 };
	const struct bpf_insn insns[] = {MOV_I(2, 9), STX_W(1, CB4, 2), MOV_I(0, 0), EXIT};
	open_with(type, LOAD(insns));
	PUT(t.p, "abcd");
	PUT(t.p, "efghi");
	rx_none(k);
}

static void assembly_timeout(int type)
{
	open_with(type, prog_p4());
	set_timeout(t.a, SO_RCVTIMEO, 200);
	PUT(t.p, "\0\0");
	nap(60);
	say("early: %d", take_so_error(t.a));
	usleep(400000);
	nap(10);
	SO_ERR(t.a);
}

static void assembly_timeout_body(int type)
{
	char data[64];
	open_with(type, prog_p4());
	set_timeout(t.a, SO_RCVTIMEO, 200);
	p4(data, 50, 'a');
	put(t.p, data, 20);
	usleep(400000);
	nap(10);
	SO_ERR(t.a);
}

static void timeout_not_extended(int type)
{
	char data[64];
	int seen = 0;
	open_with(type, prog_p4());
	set_timeout(t.a, SO_RCVTIMEO, 200);
	p4(data, 50, 'a');
	for (int i = 0; i < 6; i++) {
		put(t.p, data + 4 * i, 4);
		usleep(50000);
		nap(2);
		seen |= take_so_error(t.a) == ETIMEDOUT;
	}
	say("ETIMEDOUT: %d", seen);
}

static void timeout_set_late(int type)
{
	char data[64];
	open_with(type, prog_p4());
	size_t len = p4(data, 20, 'a');
	put(t.p, data, 6);
	set_timeout(t.a, SO_RCVTIMEO, 100);
	usleep(250000);
	nap(10);
	SO_ERR(t.a);
	put(t.p, data + 6, len - 6);
	rx(k, 100, 0);
	put(t.p, data, 6);
	usleep(250000);
	nap(10);
	SO_ERR(t.a);
}

static void timeout_behind_complete(int type)
{
	char data[64];
	open_with(type, prog_p4());
	set_timeout(t.a, SO_RCVTIMEO, 150);
	size_t len = p4(data, 8, 'a');
	p4(data + len, 8, 'b');
	put(t.p, data, len + 6);
	rx(k, 100, 0);
	usleep(350000);
	nap(10);
	SO_ERR(t.a);
}

static void send_after_timeout(int type)
{
	open_with(type, prog_p4());
	set_timeout(t.a, SO_RCVTIMEO, 60);
	PUT(t.p, "\0\0");
	usleep(200000);
	nap(10);
	SO_ERR(t.a);
	R(send(k, "hello", 5, MSG_EOR));
	drain(t.p, 5);
}

/* Two good messages, then one whose length the parser refuses. */
static void abort_third(int type)
{
	open_with(type, prog_raw());
	PUT(t.p, "\0\0\0\x08good");
	PUT(t.p, "\0\0\0\x08" "fine");
	PUT(t.p, "\xff\xff\xff\xff" "bad!");
}

static void good_before_abort(int type)
{
	abort_third(type);
	rx(k, 100, 0);
	rx(k, 100, 0);
	PUT(t.p, "later");
	rx_none(k);
	SO_ERR(t.a);
	R(unattach(k, t.a));
	drain(t.a, 13);
}

static void reattach_after_abort(int type)
{
	abort_third(type);
	SO_ERR(t.a);
	R(unattach(k, t.a));
	R(attach(k, t.a, prog_const(8)));
	rx(k, 100, 0);
	rx(k, 100, 0);
	rx(k, 100, 0);
}

static void data_then_error(int type)
{
	char buf[100];
	open_with(type, prog_const(-EBADMSG));
	PUT(t.p, "data");
	R(unattach(k, t.a));
	R(recv(t.a, buf, sizeof buf, DW));
	R(recv(t.a, buf, sizeof buf, DW));
	R(recv(t.a, buf, sizeof buf, DW));
}

static void unattach_partial(int type)
{
	char data[64];
	open_with(type, prog_p4());
	p4(data, 8, 'a');
	put(t.p, data, 6);
	R(unattach(k, t.a));
	PUT(t.p, "Z");
	drain(t.a, 1);
}

static void partial_then_fin(int type)
{
	char data[64];
	open_with(type, prog_p4());
	p4(data, 8, 'a');
	put(t.p, data, 6);
	shutdown(t.p, SHUT_WR);
	nap(10);
	rx_none(k);
	SO_ERR(t.a);
	R(unattach(k, t.a));
	R(recv(t.a, data, sizeof data, DW));
}

static void data_then_fin(int type)
{
	open_with(type, prog_p4());
	msg(t.p, 8, 'a');
	shutdown(t.p, SHUT_WR);
	nap(10);
	rx(k, 100, 0);
	rx_none(k);
}

static void stolen_bytes(int type)
{
	char data[128];
	open_settled(type);
	p4(data, 100, 'a');
	put(t.p, data, 20);
	put(t.p, data + 20, 20);
	R(recv(t.a, data, sizeof data, DW));
}

static void parked_bytes(int type)
{
	char data[128];
	open_settled(type);
	recv_disable(k, 1);
	msg(t.p, 8, 'a');
	msg(t.p, 8, 'b');
	R(recv(t.a, data, sizeof data, DW));
}

static void tcp_rcvlowat(int type)
{
	open_settled(type);
	R(set_int(t.a, SOL_SOCKET, SO_RCVLOWAT, 100));
	msg(t.p, 8, 'a');
	rx_none(k);
	msg(t.p, 100, 'b');
	nap(20);
	while (rx_none(k) >= 0)
		;
}

static void urgent_byte(int type)
{
	char data[64];
	open_with(type, prog_p4());
	p4(data, 8, 'a');
	put(t.p, data, 11);
	R(send(t.p, data + 11, 1, MSG_OOB));
	nap(20);
	rx_none(k);
}

static void refused_loads(int type)
{
	static const struct {
		int offset, size;
		const char *name;
	} fields[] = {
		{offsetof(struct __sk_buff, data), BPF_W, "data"},
		{offsetof(struct __sk_buff, tstamp), BPF_DW, "tstamp"},
		{offsetof(struct __sk_buff, remote_port), BPF_W, "remote_port"}};
	(void)type;
	for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
		const struct bpf_insn insns[] = {
			INSN(BPF_LDX | fields[i].size | BPF_MEM, 2, 1, fields[i].offset, 0), MOV_I(0, 0), EXIT};
		report_fd(fields[i].name, LOAD(insns));
	}
}

static void kcm_to_kcm(int type)
{
	int other = kcm(type), b = prog_p4(), exact = 0;
	static char data[2048], buf[2048];
	k = kcm(type);
	t = attached(k, b);
	R(attach(other, t.p, b));
	for (int i = 0; i < 200; i++) {
		size_t len = p4(data, (i * 37) % 1500 + 1, 'a' + i % 26);
		if (send(k, data, len, MSG_EOR) != (ssize_t)len)
			break;
		ready(other, POLLIN, 4000);
		exact += recv(other, buf, sizeof buf, DW) == (ssize_t)len && !memcmp(buf, data, len);
	}
	say("exact: %d", exact);
}

/* Writes `count` messages before anything reads; returns how many then came in exactly. */
static int slow_reader(int type, int count, int vary)
{
	static char data[1 << 20], buf[256];
	size_t len = 0;
	int exact = 0;
	open_with(type, prog_p4());
	for (int i = 0; i < count; i++)
		len += p4(data + len, vary ? i % 60 + 1 : 40, 'a' + i % 26);
	pid_t pid = fork();
	if (!pid) {
		size_t at = 0;
		for (int i = 0; i < count; i++) {
			size_t one = vary ? i % 60 + 5 : 44;
			if (write(t.p, data + at, one) != (ssize_t)one)
				break;
			at += one;
		}
		_exit(0);
	}
	usleep(300000);
	for (int i = 0; ready(k, POLLIN, 500); i++) {
		ssize_t got = recv(k, buf, sizeof buf, DW);
		if (got < 0)
			break;
		exact += i < count && got == (vary ? i % 60 + 5 : 44) && buf[4] == 'a' + i % 26 && buf[got - 1] == buf[4];
	}
	close(t.p);
	close(t.a);
	close(k);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	return exact;
}

static void slow_reader_equal(int type)
{
	/* How many survive on the kernel depends on where TCP merges buffers. */
	say("some exact: %d", slow_reader(type, 3000, 0) >= 100);
}

static void slow_reader_variable(int type)
{
	say("all 3000 exact: %d", slow_reader(type, 3000, 1) == 3000);
}

static const struct kcm_case cases[] = {
	{"J01", S, BOTH, spaced},
	{"J02", S, ONCE, byte_by_byte},
	{"J03", S, BOTH, split},
	{"J04", S, BOTH, equal_lengths_one_write},
	{"J05", Q, ONCE, different_lengths_one_write},
	{"J06", Q, ONCE, tail_and_whole},
	{"J07", Q, ONCE, read_before_attach},
	{"J08", S, ONCE, one_byte_messages},
	{"J09", S, ONCE, negative_results},
	{"J10", S, ONCE, huge_result},
	{"J11", S, ONCE, result_truncated},
	{"J12", S, ONCE, raw_errors},
	{"J13", Q, ONCE, wrapped_length},
	{"J14", S, ONCE, estrpipe_first},
	{"J15", S, ONCE, estrpipe_late},
	{"J16", S, ONCE, result_below_consumed},
	{"J17", S, ONCE, limit_is_rcvbuf},
	{"J18", S, ONCE, limit_changes},
	{"J19", S, ONCE, message_fills_buffer},
	{"J20", S, ONCE, load_beyond},
	{"J21", S, ONCE, load_bytes},
	{"J22", S, ONCE, load_bytes_result},
	{"J23", S, ONCE, length_from_context},
	{"J24", S, ONCE, zero_length},
	{"J25", S, ONCE, cb_persists},
	{"J26", Q, ONCE, cb_is_length},
	{"J27", T, ONCE, assembly_timeout},
	{"J28", T, ONCE, assembly_timeout_body},
	{"J29", T, ONCE, timeout_not_extended},
	{"J30", T, ONCE, timeout_set_late},
	{"J31", Q, ONCE, timeout_behind_complete},
	{"J32", S, ONCE, send_after_timeout},
	{"J33", S, ONCE, good_before_abort},
	{"J34", S, ONCE, reattach_after_abort},
	{"J35", S, ONCE, data_then_error},
	{"J36", S, ONCE, unattach_partial},
	{"J37", S, ONCE, partial_then_fin},
	{"J38", S, BOTH, data_then_fin},
	{"J39", Q, ONCE, stolen_bytes},
	{"J40", Q, ONCE, parked_bytes},
	{"J41", Q, ONCE, tcp_rcvlowat},
	{"J42", Q, ONCE, urgent_byte},
	{"J43", S, ONCE, refused_loads},
	{"J44", S, BOTH, kcm_to_kcm},
	{"J45", Q, ONCE, slow_reader_equal},
	{"J46", Q, ONCE, slow_reader_variable},
};
GUEST_MAIN(cases)
