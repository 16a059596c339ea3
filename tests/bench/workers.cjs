// Peers that run on node: works on the queue "bench" until it is killed. node workers.cjs WHO, with libpq's variables.
const HANDS = 16, BATCH = 100;

async function graphile() {
  const { run, Logger } = require("graphile-worker");
  await run({
    pgPool: new (require("pg").Pool)({ max: HANDS + 4 }),
    taskList: { bench: async () => {} },
    preset: { worker: { concurrentJobs: HANDS, localQueue: { size: BATCH }, completeJobBatchDelay: 0 } },
    logger: new Logger(() => () => {}),
  });
}

async function pgboss() {
  const PgBoss = require("pg-boss");
  const boss = new PgBoss({ supervise: false, schedule: false });
  boss.on("error", (error) => console.error(error));
  await boss.start();
  await boss.createQueue("bench");
  // A worker sleeps for at least half a second between two batches, so it gets large ones.
  await boss.work("bench", { batchSize: 1000, pollingIntervalSeconds: 0.5 }, async () => {});
}

({ graphile, pgboss })[process.argv[2]]();
