//! TCP/IP engine as a sans-I/O state machine.
