"""What `collm doctor` looks at: each check yields findings, and never raises for what is wrong."""
