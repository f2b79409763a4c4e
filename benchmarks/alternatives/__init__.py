"""What the data plane's parts were chosen over: HTTP servers, and ways from a router to a replica."""
