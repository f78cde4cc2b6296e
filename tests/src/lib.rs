//! Lanes, guest runner and trace comparison for the integration tests.
