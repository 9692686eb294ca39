//! Runs integrators' programs at named points, and the health checks.
