// A worker in Node, with npm's `pg` and nothing else: TIDEBASE_DATABASE_URL=... node worker.js [QUEUE ...]
const os = require("node:os");
const { randomUUID } = require("node:crypto");
const { Pool } = require("pg");

const pool = new Pool({ connectionString: process.env.TIDEBASE_DATABASE_URL, max: 4 });
const row = async (sql, ...values) => (await pool.query(sql, values)).rows[0];
const json = (value) => JSON.stringify(value ?? null); // pg would make a Postgres array of a list, and no JSON of a text

const workflows = {
  async greet(run, input) {
    const name = await run.step("name", input, async () => input.name.trim());
    return run.step("greet", name, async () => ({ text: `Hello ${name}`, by: process.version }));
  },
};

class Run {
  constructor(claim) {
    Object.assign(this, claim); // run_id, token, attempt, workflow, input ...; token is a bigint: a text here, and stays one
  }

  async step(name, input, work) {
    const start = await row("select * from tidebase.begin_step($1, $2, $3, $4::jsonb, request_id => $5)",
      this.run_id, this.token, name, json(input), randomUUID());
    if (start.outcome === "replay") return start.output; // it was done before: nothing is executed
    if (start.outcome === "review") throw new Error(`step ${name} waits for a person`);
    try {
      const output = await work();
      await row("select tidebase.complete_step($1, $2, $3, $4::jsonb)", this.run_id, this.token, name, json(output));
      return output;
    } catch (error) {
      if (error.code?.startsWith("TB")) throw error;
      await row("select * from tidebase.fail_step($1, $2, $3, $4::jsonb)", this.run_id, this.token, name, json(described(error)));
      throw error;
    }
  }
}

const described = (error) => ({ type: error.name, message: error.message });

async function workOn(run) {
  const renew = () => row("select tidebase.renew_lease($1, $2, '30 seconds')", run.run_id, run.token).catch(console.error);
  const heartbeat = setInterval(renew, 10_000);
  try {
    const result = await workflows[run.workflow](run, run.input);
    await row("select tidebase.complete_run($1, $2, $3::jsonb)", run.run_id, run.token, json(result));
  } catch (error) {
    if (error.code?.startsWith("TB")) console.error(error.message, error.detail); // lost, cancelled, in review: it is decided
    else await row("select tidebase.fail_run($1, $2, $3::jsonb)", run.run_id, run.token, json(described(error)));
  } finally {
    clearInterval(heartbeat);
  }
}

async function main(queues) {
  let stopping = false;
  for (const signal of ["SIGTERM", "SIGINT"]) process.once(signal, () => (stopping = true));
  while (!stopping) {
    const { rows } = await pool.query("select * from tidebase.claim_runs($1, $2, 4, '30 seconds', $3, request_id => $4)",
      [queues, `${os.hostname()}:${process.pid}:node`, Object.keys(workflows), randomUUID()]);
    await Promise.all(rows.map((claim) => workOn(new Run(claim))));
    if (rows.length === 0) await new Promise((done) => setTimeout(done, 500));
  }
  await pool.end();
}

main(process.argv.length > 2 ? process.argv.slice(2) : ["default"]);
