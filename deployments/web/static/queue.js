// Limits the number of concurrent requests, so that a hundred pictures do not block other clients of the server.

/** Returns `enqueue(job)`, which runs asynchronous jobs in the order of the calls, at most `atOnce` at a time. */
export function createQueue(atOnce) {
  const waiting = [];
  let running = 0;

  function next() {
    while (running < atOnce && waiting.length) {
      running++;
      waiting.shift()().finally(() => {
        running--;
        next();
      });
    }
  }

  return (job) => {
    waiting.push(job);
    next();
  };
}
