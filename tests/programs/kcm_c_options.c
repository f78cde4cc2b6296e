/* Section C: getsockopt and setsockopt at level SOL_KCM. */
#include "guest.h"

static void get_value(int type)
{
	int k = kcm(type), value = -1;
	socklen_t len = sizeof value;
	R(getsockopt(k, SOL_KCM, KCM_RECV_DISABLE, &value, &len));
	say("value %d length %u", value, len);
}

static void get_unknown(int type)
{
	int k = kcm(type), value;
	socklen_t len = sizeof value;
	R(getsockopt(k, SOL_KCM, 0, &value, &len));
	R(getsockopt(k, SOL_KCM, 2, &value, &len));
	R(getsockopt(k, SOL_TCP, 1, &value, &len));
	R(getsockopt(k, SOL_IP, 1, &value, &len));
	R(getsockopt(k, 0x7777, 1, &value, &len));
}

static void get_negative_length(int type)
{
	int k = kcm(type), value;
	socklen_t len = -1;
	R(getsockopt(k, SOL_KCM, 1, &value, &len));
	R(getsockopt(k, SOL_KCM, 2, &value, &len));
}

static void get_length_zero(int type)
{
	int k = kcm(type);
	socklen_t len = 0;
	R(getsockopt(k, SOL_KCM, 1, BAD_PTR, &len));
	say("length %u", len);
}

static void get_other_lengths(int type)
{
	int k = kcm(type);
	for (socklen_t asked = 2; asked <= 8; asked += 6) {
		unsigned char buf[8];
		socklen_t len = asked, written = 0;
		memset(buf, 0xff, sizeof buf);
		int r = getsockopt(k, SOL_KCM, 1, buf, &len);
		for (size_t i = 0; i < sizeof buf; i++)
			written += buf[i] != 0xff;
		say("asked %u: %s, %u bytes written, length %u", asked, r ? errno_name(errno) : "ok", written, len);
	}
}

static void get_bad_pointers(int type)
{
	int k = kcm(type), value;
	socklen_t len = sizeof value;
	R(getsockopt(k, SOL_KCM, 1, BAD_PTR, &len));
	R(getsockopt(k, SOL_KCM, 1, &value, BAD_PTR));
	R(getsockopt(k, SOL_TCP, 1, &value, BAD_PTR));
}

static void set_values(int type)
{
	int k = kcm(type);
	long zero = 0;
	R(set_int(k, SOL_KCM, 1, 1));
	R(get_int(k, SOL_KCM, 1));
	R(set_int(k, SOL_KCM, 1, -5));
	R(get_int(k, SOL_KCM, 1));
	R(setsockopt(k, SOL_KCM, 1, &zero, sizeof zero));
	R(get_int(k, SOL_KCM, 1));
}

static void set_bad_length(int type)
{
	int k = kcm(type), value = 1;
	R(setsockopt(k, SOL_KCM, 1, &value, 3));
	R(setsockopt(k, SOL_KCM, 1, &value, 0));
	R(setsockopt(k, SOL_KCM, 1, &value, -1));
	R(setsockopt(k, SOL_KCM, 1, BAD_PTR, 4));
	R(setsockopt(k, SOL_KCM, 1, BAD_PTR, 3));
}

static void set_unknown(int type)
{
	int k = kcm(type), value = 1;
	R(setsockopt(k, SOL_KCM, 2, &value, 4));
	R(setsockopt(k, SOL_KCM, 2, &value, 3));
	R(setsockopt(k, SOL_KCM, 2, BAD_PTR, 4));
}

static void set_other_level(int type)
{
	int k = kcm(type), value = 1;
	R(setsockopt(k, SOL_TCP, 1, &value, 4));
	R(setsockopt(k, SOL_TCP, 1, &value, 1));
}

static const struct kcm_case cases[] = {
	{"C01", S, BOTH, get_value},
	{"C02", S, ONCE, get_unknown},
	{"C03", S, ONCE, get_negative_length},
	{"C04", S, ONCE, get_length_zero},
	{"C05", S, ONCE, get_other_lengths},
	{"C06", S, ONCE, get_bad_pointers},
	{"C07", S, BOTH, set_values},
	{"C08", S, ONCE, set_bad_length},
	{"C09", S, ONCE, set_unknown},
	{"C10", S, ONCE, set_other_level},
};
GUEST_MAIN(cases)
