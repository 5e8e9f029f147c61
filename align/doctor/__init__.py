"""What `qwen-align doctor` looks at: libraries, devices, the home's file system, connections between processes."""
