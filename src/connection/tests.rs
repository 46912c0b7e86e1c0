//! Against small TCP servers that answer what the test says.
