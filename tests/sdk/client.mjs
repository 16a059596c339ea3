// The calls of the published TypeScript SDK, written anew from the protocol: what it sends, what it reads of the answers, and
// how it ends. Events come through the EventSource of npm's `eventsource`, read with `onmessage`, as that SDK reads them.
import { createHash, createHmac } from 'node:crypto'
import { createRequire } from 'node:module'

const { EventSource } = createRequire(process.env.NODE_FOLDER + '/')('eventsource')

export class Failed extends Error {
  constructor(status, body) {
    super(`${status} ${body}`)
    this.status = status
    try { this.body = JSON.parse(body) } catch { this.body = {} }
  }
  get code() { return this.body.code ?? null }
}
export class Cancelled extends Error {}

const sorted = (value) => Array.isArray(value) ? value.map(sorted)
  : value && typeof value === 'object' ? Object.fromEntries(Object.keys(value).sort().map((key) => [key, sorted(value[key])])) : value
const hashOf = (value) => createHash('sha256').update(JSON.stringify(sorted(value))).digest('hex')
const named = (error) => ({ name: error.name, message: error.message, stack: error.stack })
export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms))
export const isSigned = (body, header, secret) =>
  header === 'sha256=' + createHmac('sha256', secret).update(body).digest('hex')

export class Client {
  constructor(url, key) { Object.assign(this, { url, key }) }

  async call(path, method = 'GET', body, headers = {}) {
    const sent = { 'content-type': 'application/json', ...(this.key ? { authorization: `Bearer ${this.key}` } : {}), ...headers }
    const answer = await fetch(this.url + path, { method, headers: sent, body: body === undefined ? undefined : JSON.stringify(body) })
    const text = await answer.text()
    if (answer.ok) return JSON.parse(text)
    const failed = new Failed(answer.status, text)
    throw failed.code === 'run_cancelled' ? new Cancelled(text) : failed
  }

  async create(workflow, options = {}) { return (await this.call(`/runs/${encodeURIComponent(workflow)}`, 'POST', options)).run }
  get(id) { return this.call(`/runs/${id}`) }
  begin(id, headers) { return this.call(`/runs/${id}/begin`, 'POST', undefined, headers) }

  async attach(workflow, options = {}) {
    const run = await this.create(workflow, options)
    return new Run(this, run, (await this.begin(run.id)).leaseOwner)
  }

  async run(workflow, { runId, ...options }, work) {
    const run = runId === undefined ? await this.create(workflow, options) : (await this.get(runId)).run
    if (run.status === 'completed') return run.result
    const begun = await this.begin(run.id)
    try {
      const result = await work(new Run(this, run, begun.leaseOwner), run.input)
      await this.call(`/runs/${run.id}/complete`, 'POST', { result })
      return result
    } catch (error) {
      if (!(error instanceof Cancelled)) await this.call(`/runs/${run.id}/fail`, 'POST', { error: named(error) }).catch(() => undefined)
      throw error
    }
  }

  async *subscribe(id) {
    const key = this.key ? `?token=${encodeURIComponent(this.key)}` : ''
    const source = new EventSource(`${this.url}/runs/${id}/events${key}`)
    const come = []
    let broken, ring = () => undefined
    source.onmessage = (message) => { come.push(JSON.parse(message.data)); ring() }
    source.onerror = () => { broken = new Error('event stream failed'); ring() }
    try {
      for (;;) {
        while (come.length) yield come.shift()
        if (broken) throw broken
        await new Promise((resolve) => { ring = resolve })
      }
    } finally { source.close() }
  }
}

export class Run {
  constructor(client, run, owner) { Object.assign(this, { client, run, id: run.id, owner }) }

  call(path, method, body, headers) { return this.client.call(`/runs/${this.id}${path}`, method, body, headers) }
  detail() { return this.client.get(this.id) }
  heartbeat() { return this.call('/heartbeat', 'POST', { leaseOwner: this.owner }) }
  complete(result, more = {}) { return this.call('/complete', 'POST', { result, ...more }) }
  fail(error, more = {}) { return this.call('/fail', 'POST', { error: named(error), ...more }) }
  set(value, options = {}) { return this.call('/state', 'PUT', { value, ...options }) }
  patch(value, options = {}) { return this.call('/state', 'PATCH', { value, ...options }) }
  async save(label, options = {}) { return (await this.call('/state/save', 'POST', { label, ...options })).stateVersion }
  async versions(query = '') { return (await this.call(`/state/versions${query}`)).stateVersions }
  async snapshot(label, options) { return (await this.call('/snapshots', 'POST', { label, ...options })).snapshot }
  async usage(options) { return (await this.call('/usage', 'POST', options)).usage }
  beginStep(name, options = {}, more = {}) {
    const inputHash = options.inputHash ?? hashOf(options.input ?? null)
    return this.call('/steps/begin', 'POST', { name, inputHash, input: options.input ?? null, options, leaseOwner: this.owner, ...more })
  }

  async step(name, options, work) {
    if (work === undefined) [options, work] = [{}, options]
    const begin = async () => {
      const begun = await this.beginStep(name, options)
      if (begun.action === 'cancelled') throw new Cancelled(name)
      if (begun.action === 'input_mismatch') throw new Error('input hash changed')
      if (begun.action === 'locked') throw new Error('leased by another worker')
      return begun
    }
    for (let left = options.retries ?? 0; ; left -= 1) {
      const begun = await begin()
      if (begun.action === 'return') return begun.output
      const path = `/steps/${begun.step.id}`
      try {
        const output = await work()
        await this.call(`${path}/complete`, 'POST', { leaseOwner: begun.leaseOwner, output })
        return output
      } catch (error) {
        const retryable = left > 0
        const sent = { leaseOwner: begun.leaseOwner, retryable, error: named(error), resumeDecision: retryable ? 'auto_retry' : 'safe_replay' }
        await this.call(`${path}/fail`, 'POST', sent).catch(() => undefined)
        if (!retryable) throw error
      }
    }
  }

  async beginGate(name, options = {}) {
    const sent = { prompt: 'Go on?', data: {}, channels: [], capability: null, ...options }
    return (await this.call('/gates/begin', 'POST', { name, ...sent })).gate
  }
  async pollGate(gate) {
    const answer = await this.call(`/gates/${gate.id}`)
    if (answer.runStatus === 'cancelled') throw new Cancelled(gate.name)
    return answer.gate
  }
  async gate(name, { timeoutMs, ...options } = {}) {
    let gate = await this.beginGate(name, { timeoutMs, ...options })
    const until = timeoutMs && Date.now() + timeoutMs
    while (gate.status === 'pending') {
      if (until && Date.now() > until) throw new Error(`Gate ${name} timed out`)
      await sleep(5)
      gate = await this.pollGate(gate)
    }
    return gate
  }
  async resolve(gate, decision = 'approved', more = {}) {
    return (await this.call(`/gates/${gate.id}/resolve`, 'POST', { token: gate.resolveToken, decision, ...more })).gate
  }

  beginChild(name, options = {}) {
    return this.call('/children', 'POST', { name, workflowName: 'child', edgeType: 'child', ...options })
  }
}
