#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""kcm_echo.py - a KCM echo server in Python: socket.socket(41, ...) and fcntl.ioctl.

    python3 kcm_echo.py [port]                    default: a free port

Expected output; the last line comes on SIGINT or SIGTERM:

    kcm_echo.py: listening on 127.0.0.1:4000
    kcm_echo.py: 100000 messages echoed

A message is a 32-bit big-endian length and that many bytes, so kcm_load drives it.
Python needs no module for KCM: the socket class takes any family.  Only the parser
program goes through ctypes, for bpf(2) has no wrapper.
"""

import ctypes
import errno
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import sys

AF_KCM, KCMPROTO_CONNECTED = 41, 0
SIOCKCMATTACH, SIOCKCMUNATTACH = 0x89E0, 0x89E1
MSG_EOR = 0x80

NR_BPF = {"x86_64": 321, "aarch64": 280}[platform.machine()]
BPF_PROG_LOAD, BPF_PROG_TYPE_SOCKET_FILTER = 5, 1

# A longer message stops its connection. KCM's own limit is SO_RCVBUF of the TCP
# socket, 128 KiB where nobody set it.
MESSAGE_MAX = 65536


def instruction(code, registers=0, jump=0, immediate=0):
    """One struct bpf_insn; the low half of `registers` is the destination."""
    return struct.pack("=BBhi", code, registers, jump, immediate)


# What kcm_parser.h makes of "width 4, offset 0, adjust 4, most MESSAGE_MAX".
PARSER = b"".join([
    instruction(0xBF, 0x16),                            # r6 = r1, where loads want the context
    instruction(0x20),                                  # r0 = the length word, or "need more"
    instruction(0x07, 0, 0, 4),                         # r0 += 4, for the word itself
    instruction(0x65, 0, 1, MESSAGE_MAX),               # if r0 > MESSAGE_MAX skip the exit
    instruction(0x95),                                  # return r0
    instruction(0xB7, 0, 0, -errno.EMSGSIZE),           # return -EMSGSIZE
    instruction(0x95),
])


def load_parser():
    """Loads PARSER by bpf(2) and returns its descriptor."""
    libc = ctypes.CDLL(None, use_errno=True)
    code, license = ctypes.create_string_buffer(PARSER), ctypes.create_string_buffer(b"Dual MIT/GPL")
    attributes = struct.pack("=IIQQ", BPF_PROG_TYPE_SOCKET_FILTER, len(PARSER) // 8,
                             ctypes.addressof(code), ctypes.addressof(license)).ljust(128, b"\0")
    fd = libc.syscall(ctypes.c_long(NR_BPF), ctypes.c_long(BPF_PROG_LOAD), attributes,
                      ctypes.c_long(len(attributes)))
    if fd < 0:
        raise OSError(ctypes.get_errno(), "bpf(BPF_PROG_LOAD): " + os.strerror(ctypes.get_errno()))
    return fd


class Server:
    """One multiplexor over all connections; an echo leaves on any of them."""

    def __init__(self, port):
        self.kcm = socket.socket(AF_KCM, socket.SOCK_SEQPACKET, KCMPROTO_CONNECTED)
        self.bpf = load_parser()
        self.listener = socket.create_server(("127.0.0.1", port))
        self.poll = select.poll()
        self.poll.register(self.kcm, select.POLLIN)
        self.poll.register(self.listener, select.POLLIN)
        self.connections = {}
        self.echoed = 0

    def attach(self):
        connection, _ = self.listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            fcntl.ioctl(self.kcm, SIOCKCMATTACH, struct.pack("=ii", connection.fileno(), self.bpf))
        except OSError:
            connection.close()  # the peer has reset it already
            return
        # The KCM socket never shows the end of a connection, its TCP socket does.
        self.poll.register(connection, select.POLLRDHUP)
        self.connections[connection.fileno()] = connection

    def retire(self, fd):
        self.poll.unregister(fd)
        fcntl.ioctl(self.kcm, SIOCKCMUNATTACH, struct.pack("=i", fd))
        self.connections.pop(fd).close()

    def echo(self):
        try:
            while True:
                self.kcm.send(self.kcm.recv(MESSAGE_MAX, socket.MSG_DONTWAIT), MSG_EOR)
                self.echoed += 1
        except BlockingIOError:
            pass  # no message is left

    def run(self):
        while True:
            for fd, _ in self.poll.poll():
                if fd == self.kcm.fileno():
                    self.echo()
                elif fd == self.listener.fileno():
                    self.attach()
                else:
                    self.retire(fd)


def main():
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = Server(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    print("kcm_echo.py: listening on 127.0.0.1:%d" % server.listener.getsockname()[1], flush=True)
    try:
        server.run()
    except KeyboardInterrupt:
        print("kcm_echo.py: %d messages echoed" % server.echoed)


if __name__ == "__main__":
    main()
