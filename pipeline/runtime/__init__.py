"""What the stages run on: their loop, queues, processes, statistics, the latency contract."""
