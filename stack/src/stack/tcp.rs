//! TCP sockets, as the application sees them.

use core::net::SocketAddr;

use super::{ListenerId, Stack, TcpId, scope_of};
use crate::error::{Cause, RecvError, SendError, SocketError};
use crate::events::Ready;
use crate::tcp::{ConnectOptions, ListenOptions, SockFlag, SockOpts, State, TcpInfo, TcpStats};
use crate::time::Instant;

impl Stack {
    /// Starts a connection; CONNECTED and WRITABLE, or ERROR, follow as an event.
    ///
    /// # Errors
    /// `InvalidAddress`, `AddressNotAvailable` (also for a local port whose packets would not come back
    /// to this [shard](crate::Shard)), `AddressInUse`, `PortsExhausted`, `NoRoute`.
    pub fn tcp_connect(
        &mut self,
        now: Instant,
        remote: SocketAddr,
        options: &ConnectOptions,
    ) -> Result<TcpId, SocketError> {
        let iface = options.iface.or(scope_of(remote));
        self.tcp
            .connect(&mut self.ip, remote.into(), iface, options, now)
    }

    /// Listens on an address; port 0 chooses one.
    ///
    /// # Errors
    /// `AddressNotAvailable`, `AddressInUse`, `PortsExhausted`.
    pub fn tcp_listen(
        &mut self,
        local: SocketAddr,
        options: &ListenOptions,
    ) -> Result<ListenerId, SocketError> {
        self.tcp.listen(&self.ip, local.into(), options)
    }

    /// Sends the acknowledgements that wait for something to carry them
    /// ([`TcpConfig::hold_acks`](crate::TcpConfig::hold_acks)).
    pub fn tcp_release_acks(&mut self, now: Instant) {
        self.tcp.release_acks(now);
    }

    /// Takes the oldest established connection of a listener.
    pub fn tcp_accept(&mut self, id: ListenerId) -> Option<TcpId> {
        self.tcp.accept(id)
    }

    /// Connections waiting to be accepted; `None` for a stale handle.
    pub fn tcp_accept_queue_len(&mut self, id: ListenerId) -> Option<usize> {
        self.tcp.accept_queue_len(id)
    }

    /// The port a listener holds.
    pub fn tcp_listener_port(&mut self, id: ListenerId) -> Option<u16> {
        self.tcp.listener_port(id)
    }

    /// Whether a listener has no connection that is being made, or waits to be accepted.
    pub fn tcp_listener_is_idle(&mut self, id: ListenerId) -> bool {
        self.tcp.listener_is_idle(id)
    }

    /// Stops listening; connections not accepted are reset.
    pub fn tcp_unlisten(&mut self, now: Instant, id: ListenerId) {
        self.tcp.unlisten(id, now);
    }

    /// Queues bytes of a scatter list; returns how many were taken. `more` (MSG_MORE) holds back a
    /// partial segment.
    ///
    /// # Errors
    /// `WouldBlock` (WRITABLE follows), `Closed`, `Failed` once per latched error, `BadHandle`.
    pub fn tcp_send(
        &mut self,
        now: Instant,
        id: TcpId,
        parts: &[&[u8]],
        more: bool,
    ) -> Result<usize, SendError> {
        self.tcp.send(id, parts, more, now)
    }

    /// As `tcp_send`; the last byte becomes the urgent byte (MSG_OOB).
    ///
    /// # Errors
    /// As `tcp_send`.
    pub fn tcp_send_urgent(
        &mut self,
        now: Instant,
        id: TcpId,
        data: &[u8],
    ) -> Result<usize, SendError> {
        self.tcp.send_urgent(id, data, now)
    }

    /// Copies received bytes out; `Ok(0)` is end of stream.
    ///
    /// # Errors
    /// `WouldBlock` (READABLE follows), `NotConnected`, `Failed` once per latched error,
    /// `BadHandle`.
    pub fn tcp_recv(
        &mut self,
        now: Instant,
        id: TcpId,
        out: &mut [u8],
    ) -> Result<usize, RecvError> {
        self.tcp.recv(id, out, false, now)
    }

    /// As `tcp_recv`, leaving the bytes queued (MSG_PEEK).
    ///
    /// # Errors
    /// As `tcp_recv`.
    pub fn tcp_peek(
        &mut self,
        now: Instant,
        id: TcpId,
        out: &mut [u8],
    ) -> Result<usize, RecvError> {
        self.tcp.recv(id, out, true, now)
    }

    /// As `tcp_recv`, or `tcp_peek`, of at most `room` bytes, which are lent in place: `take` gets them
    /// as contiguous pieces, perhaps with more behind, and how many it is to take. When it fails they
    /// stay queued, and its error is the inner one.
    ///
    /// # Errors
    /// As `tcp_recv`.
    pub fn tcp_recv_with<E>(
        &mut self,
        now: Instant,
        id: TcpId,
        room: usize,
        peek: bool,
        take: impl FnOnce(&mut dyn Iterator<Item = &[u8]>, usize) -> Result<(), E>,
    ) -> Result<Result<usize, E>, RecvError> {
        self.tcp.recv_with(id, room, peek, now, take)
    }

    /// Whether no more bytes can be queued before some are read: the buffer is full, or an urgent mark
    /// ends what one read returns.
    pub fn tcp_at_limit(&self, id: TcpId) -> bool {
        self.tcp.at_limit(id)
    }

    /// The readable bytes in place, as contiguous pieces; nothing for a stale handle. Take them
    /// with [`tcp_consume`](Self::tcp_consume).
    pub fn tcp_peek_slices(&self, id: TcpId) -> impl Iterator<Item = &[u8]> {
        self.tcp.peek_slices(id)
    }

    /// Drops `n` readable bytes and opens the window accordingly.
    pub fn tcp_consume(&mut self, now: Instant, id: TcpId, n: usize) {
        self.tcp.consume(id, n, now);
    }

    /// The urgent byte (MSG_OOB).
    ///
    /// # Errors
    /// `NoUrgent`, `WouldBlock` if announced but not here, `BadHandle`.
    pub fn tcp_recv_urgent(
        &mut self,
        now: Instant,
        id: TcpId,
        peek: bool,
    ) -> Result<u8, RecvError> {
        self.tcp.recv_urgent(id, peek, now)
    }

    /// SIOCATMARK.
    pub fn tcp_at_mark(&self, id: TcpId) -> bool {
        self.tcp.at_mark(id)
    }

    /// shutdown(2).
    ///
    /// # Errors
    /// `BadHandle`; `InvalidState` if not connected.
    pub fn tcp_shutdown(
        &mut self,
        now: Instant,
        id: TcpId,
        read: bool,
        write: bool,
    ) -> Result<(), SocketError> {
        self.tcp.shutdown(id, read, write, now)
    }

    /// Gives the handle up. Queued data and FIN are still delivered; unread data makes it a reset.
    pub fn tcp_close(&mut self, now: Instant, id: TcpId) {
        self.tcp.close(id, now);
    }

    /// Gives the handle up and resets the connection (SO_LINGER with zero).
    pub fn tcp_abort(&mut self, now: Instant, id: TcpId) {
        self.tcp.abort(id, now);
    }

    /// SO_ERROR: the latched error, cleared by reading.
    pub fn tcp_take_error(&mut self, id: TcpId) -> Option<Cause> {
        self.tcp.take_error(id)
    }

    /// State of the connection; `None` for a stale handle.
    pub fn tcp_state(&self, id: TcpId) -> Option<State> {
        self.tcp.state(id)
    }

    /// Local and remote address.
    pub fn tcp_addresses(&self, id: TcpId) -> Option<(SocketAddr, SocketAddr)> {
        self.tcp
            .addresses(id)
            .map(|(l, r)| (l.to_std(), r.to_std()))
    }

    /// Levels of all readiness bits, whatever events were collected.
    pub fn tcp_ready(&mut self, id: TcpId) -> Ready {
        self.tcp.ready(id)
    }

    /// The connection is ESTABLISHED or CLOSE-WAIT: the state allows sending.
    pub fn tcp_may_send(&self, id: TcpId) -> bool {
        self.tcp.state(id).is_some_and(State::may_send)
    }

    /// The state allows sending and there is room.
    pub fn tcp_can_send(&mut self, id: TcpId) -> bool {
        self.tcp_may_send(id) && self.tcp.ready(id).contains(Ready::WRITABLE)
    }

    /// Bytes that a send would take now.
    pub fn tcp_send_room(&self, id: TcpId) -> usize {
        self.tcp.send_room(id)
    }

    /// ESTABLISHED, FIN-WAIT-1 or FIN-WAIT-2, or bytes are queued: more may be read.
    pub fn tcp_may_recv(&self, id: TcpId) -> bool {
        self.tcp.state(id).is_some_and(State::may_recv) || self.tcp_can_recv(id)
    }

    /// Bytes are queued.
    pub fn tcp_can_recv(&self, id: TcpId) -> bool {
        self.tcp.queues(id).is_some_and(|(rx, _, _)| rx > 0)
    }

    /// Bytes to read (FIONREAD), not yet acknowledged (SIOCOUTQ), not yet sent (SIOCOUTQNSD).
    pub fn tcp_queues(&self, id: TcpId) -> Option<(usize, usize, usize)> {
        self.tcp.queues(id)
    }

    /// Sets an on/off option.
    ///
    /// # Errors
    /// `BadHandle`.
    pub fn tcp_set_flag(
        &mut self,
        now: Instant,
        id: TcpId,
        flag: SockFlag,
        on: bool,
    ) -> Result<(), SocketError> {
        self.tcp.set_flag(id, flag, on, now)
    }

    /// Reads an on/off option.
    pub fn tcp_flag(&self, id: TcpId, flag: SockFlag) -> Option<bool> {
        self.tcp.flag(id, flag)
    }

    /// The valued options in force.
    pub fn tcp_opts(&self, id: TcpId) -> Option<&SockOpts> {
        self.tcp.opts(id)
    }

    /// Replaces the valued options.
    ///
    /// # Errors
    /// `BadHandle`.
    pub fn tcp_set_opts(
        &mut self,
        now: Instant,
        id: TcpId,
        opts: SockOpts,
    ) -> Result<(), SocketError> {
        self.tcp.set_opts(id, opts, now)
    }

    /// TCP_INFO.
    pub fn tcp_info(&self, now: Instant, id: TcpId) -> Option<TcpInfo> {
        self.tcp.info(id, now)
    }

    /// Counters of TCP.
    pub fn tcp_stats(&self) -> &TcpStats {
        &self.tcp.env.stats
    }

    /// Connections, embryonic connections and TIME-WAIT records.
    pub fn flow_count(&self) -> usize {
        self.tcp.flow_count()
    }

    /// Local and remote address of each connection, whatever its state but TIME-WAIT.
    pub fn tcp_connections(&self) -> impl Iterator<Item = (SocketAddr, SocketAddr)> {
        let flows = self.tcp.connections();
        flows.map(|flow| (flow.local.to_std(), flow.remote.to_std()))
    }

    /// As [`tcp_connections`](Self::tcp_connections), of those in TIME-WAIT.
    pub fn tcp_time_waits(&self) -> impl Iterator<Item = (SocketAddr, SocketAddr)> {
        let flows = self.tcp.time_waits();
        flows.map(|flow| (flow.local.to_std(), flow.remote.to_std()))
    }

    /// Ends every TIME-WAIT, for a stack that gives its addresses up: another one may use the ports.
    pub fn tcp_forget_time_waits(&mut self) {
        self.tcp.forget_time_waits();
    }

    /// Resets handshakes whose listener is gone, for a stack that ends: the peer may have all it waits for, and
    /// says nothing more that another stack with the address could answer.
    pub fn tcp_refuse_handshakes(&mut self, now: Instant) {
        self.tcp.refuse_handshakes(&mut self.ip, now);
    }

    /// Whether a connection that was closed still has data or its FIN to get across.
    pub fn is_unfinished(&self) -> bool {
        self.tcp.is_unfinished()
    }

    /// Bytes held in stream buffers.
    pub fn stream_bytes(&self) -> usize {
        self.tcp.env.pool.used_bytes()
    }
}
