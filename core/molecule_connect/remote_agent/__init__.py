"""RemoteAgentClient and its async twin: the platform for programs that are an agent themselves, with no connector."""
