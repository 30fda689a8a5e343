// A few requests at once: a hundred pictures do not keep the server from others.

/** Returns `enqueue(job)`, which runs an asynchronous job as soon as fewer than `atOnce` run, in the order they came. */
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
