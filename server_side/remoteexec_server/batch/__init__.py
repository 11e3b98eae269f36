"""Jobs: the service that submits and watches them, and the queues it can speak to."""
