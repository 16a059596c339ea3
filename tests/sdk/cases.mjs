// The cases of cases.json, run against a server: `node cases.mjs URL KEY READER_KEY CONTROL` prints what each of them saw.
// What a case needs from outside (a lease that runs out, the time that passes) it asks of the test, at CONTROL.
import { Cancelled, Client, Failed, isSigned } from './client.mjs'

const [url, key, readerKey, control] = process.argv.slice(2)
const tide = new Client(url, key), reader = new Client(url, readerKey), strange = new Client(url, 'a-wrong-secret')
const outside = async (path) => (await fetch(`${control}/${path}`, { method: 'POST' })).json()
const failure = async (promise) => {
  try { await promise; return null } catch (error) {
    return error instanceof Cancelled ? 'cancelled' : error instanceof Failed ? [error.status, error.code] : error.message
  }
}
const fails = (message) => () => { throw new Error(message) }
const read = async (id, last = 'run.completed', client = tide) => {
  const seen = []
  for await (const event of client.subscribe(id)) { seen.push(event); if (event.type === last) return seen }
}
const finished = async () => {
  const run = await tide.attach('w', { input: { q: 1 } })
  await run.step('s', () => 1)
  await run.complete({ r: 1 })
  return run
}
const event = async (run, type, client = tide) => (await client.get(run.id)).events.findLast((each) => each.type === type)
const takenOver = async (run, holder = 'other') => {
  await outside(`lapse/${run.id}`)
  return (await tide.begin(run.id, { 'x-tidebase-worker': holder })).leaseOwner
}
const failing = (run, options) => failure(run.step('send', options, fails('no')))

const cases = {
  async 'events-fields'() {
    const run = await finished()
    const answer = await fetch(`${url}/runs/${run.id}/events?token=${key}`)
    const fields = new Set()
    let text = ''
    for await (const part of answer.body) {
      text += Buffer.from(part).toString()
      if (text.includes('run.completed')) break
    }
    for (const line of text.split(/\r?\n/)) if (line && !line.startsWith(':')) fields.add(line.split(':')[0])
    return [...fields].sort()
  },
  async 'events-come'() { return (await read((await finished()).id)).map((each) => each.type) },
  async 'events-end'() {
    let count = 0
    const then = await failure((async () => { for await (const _ of tide.subscribe((await finished()).id)) count += 1 })())
    return [count, then]
  },
  async 'events-live'() {
    const run = await tide.attach('w')
    const seen = read(run.id)
    await run.step('s', () => 1)
    await run.complete(1)
    return (await seen).map((each) => each.seq)
  },
  async 'event-id'() { return typeof (await read((await finished()).id))[0].id },
  async 'event-run-created'() { const { payload } = (await read((await finished()).id))[0]; return [payload.workflowName, payload.input] },
  async 'event-run-completed'() { return (await read((await finished()).id)).at(-1).payload.result },
  async 'event-step'() {
    const run = await finished(), [step] = (await run.detail()).steps
    const { payload } = await event(run, 'step.completed')
    return [payload.stepId === step.id, payload.name]
  },
  async 'event-step-failed'() {
    const run = await tide.attach('w')
    await failure(run.step('s', fails('no')))
    const { payload } = await event(run, 'step.failed')
    return [payload.resumeDecision, payload.retryable, payload.error.message]
  },
  async 'event-state'() {
    const run = await tide.attach('w')
    await run.set({ a: 1 }); await run.patch({ b: 2 })
    await run.complete(1)
    return (await read(run.id)).filter((each) => each.type === 'state.updated').map(({ payload }) => [payload.value, payload.stateVersion.version])
  },
  async 'event-gate-created'() {
    const run = await tide.attach('w'), gate = await run.beginGate('g', { prompt: 'Sure?' })
    const told = (await read(run.id, 'gate.created')).at(-1).payload.gate
    return [told.id === gate.id, told.prompt, told.status, told.resolveToken === gate.resolveToken]
  },
  async 'event-gate-created-for-a-reader'() {
    const run = await tide.attach('w')
    await run.beginGate('g')
    const told = [(await read(run.id, 'gate.created', reader)).at(-1), await event(run, 'gate.created', reader)]
    return told.some((each) => each.payload.gate.resolveToken) ? 'the token' : 'no token'
  },
  async 'event-gate-resolved'() {
    const run = await tide.attach('w')
    await run.resolve(await run.beginGate('g'), 'rejected', { actor: 'ann' })
    const { gate } = (await event(run, 'gate.resolved')).payload
    return [gate.decision, gate.actor]
  },
  async 'event-child'() {
    const run = await tide.attach('w'), { run: child } = await run.beginChild('c')
    const { payload } = await event(run, 'run.child.created')
    return [payload.childRun.id === child.id, payload.childRun.workflowName]
  },
  async 'event-usage'() {
    const run = await tide.attach('w')
    await run.usage({ inputTokens: 3, outputTokens: 4 })
    return (await event(run, 'usage.recorded')).payload.usage.totalTokens
  },

  async 'input-of-a-run'() { const run = await tide.create('w'); return [run.input, (await tide.begin(run.id)).run.input] },
  async 'input-of-a-child'() { return (await (await tide.attach('w')).beginChild('c')).run.input },
  async 'input-of-a-step'() {
    const run = await finished()
    return (await run.detail()).steps[0].input
  },
  async 'credentials'() {
    const run = await tide.attach('w'), credentials = [{ name: 'mail', scopes: ['send'], reason: 'to tell' }]
    await run.step('s', { credentials }, () => 1)
    return (await run.detail()).steps[0].resumeContract.credentials
  },
  async 'invariants'() {
    const run = await tide.attach('w')
    await run.step('s', { checkpointInvariant: { rows: 3 }, verifiedBy: { query: 'select 1' } }, () => 1)
    const { checkpointInvariant, verifiedBy } = (await run.detail()).steps[0].resumeContract
    return [checkpointInvariant, verifiedBy]
  },
  async 'options-as-sent'() {
    const run = await tide.attach('w')
    await run.step('s', { input: { n: 1.5 }, retries: 2, timeoutMs: 1000, sideEffects: ['read'], note: 'mine' }, () => 1)
    return (await run.detail()).steps[0].options
  },
  async 'legacy-side-effect'() {
    const run = await tide.attach('w')
    await run.beginStep('send', { sideEffect: 'external' })
    const { sideEffects, replay } = (await run.detail()).steps[0].resumeContract
    return [sideEffects, replay]
  },
  async 'legacy-review'() {
    const run = await tide.attach('w')
    await run.beginStep('send', { onAmbiguousFailure: 'review' })
    return (await run.detail()).steps[0].resumeContract.replay
  },
  async 'nonsense-in-a-contract'() {
    const run = await tide.attach('w')
    return failure(run.beginStep('send', { replay: 'sometimes', sideEffects: ['mail'] }))
  },
  async 'hash-alone'() {
    const run = await tide.attach('w')
    return [await run.step('s', { inputHash: 'h', input: 1 }, () => 'first'), await run.step('s', { inputHash: 'h', input: 2 }, () => 'second')]
  },
  async 'hash-changed'() {
    const run = await tide.attach('w')
    await run.step('s', { inputHash: 'h', input: 1 }, () => 1)
    const begun = await run.beginStep('s', { inputHash: 'i', input: 1 })
    return [begun.action, begun.expectedInputHash, begun.actualInputHash]
  },

  async 'long-step'() {
    return tide.run('w', {}, async (run) => run.step('s', async () => { await outside(`lapse/${run.id}`); await outside('reconcile'); return 'done' }))
  },
  async 'long-gate'() {
    const run = await tide.attach('w')
    const waiting = run.gate('g')
    let gate
    while (!gate) [gate] = (await run.detail()).gates
    await outside(`lapse/${run.id}`)
    await outside('reconcile')
    await run.pollGate(gate)
    const renewed = new Date((await run.detail()).run.leaseExpiresAt) > new Date()
    await run.resolve(gate)
    return [(await waiting).decision, renewed, (await run.complete(1)).run.status]
  },
  async 'steps-renew'() {
    const run = await tide.attach('w')
    await outside(`lapse/${run.id}`)
    await run.step('s', () => 1)
    return new Date((await run.detail()).run.leaseExpiresAt) > new Date()
  },
  async 'heartbeat-late'() {
    const run = await tide.attach('w')
    await outside(`lapse/${run.id}`); await outside('reconcile')
    return (await run.heartbeat()).run.status
  },
  async 'heartbeat-replaced'() { const run = await tide.attach('w'); await takenOver(run); return failure(run.heartbeat()) },
  async 'step-replaced'() {
    const run = await tide.attach('w')
    await takenOver(run)
    const refused = await failure(run.step('s', () => 1))
    return refused ?? 'executed'
  },
  async 'step-replaced-in-the-middle'() {
    const run = await tide.attach('w')
    const begun = await run.beginStep('s', {})
    await takenOver(run)
    return failure(run.call(`/steps/${begun.step.id}/complete`, 'POST', { leaseOwner: begun.leaseOwner, output: 1 }))
  },
  async 'complete-replaced'() { const run = await tide.attach('w'); await takenOver(run); return (await run.complete(1)).run.status },
  async 'complete-replaced-owner'() {
    const run = await tide.attach('w')
    await takenOver(run)
    const { status } = (await run.complete(1, { leaseOwner: run.owner }).catch((error) => ({ run: { status: error.code } }))).run
    return status
  },
  async 'state-replaced-owner'() {
    const run = await tide.attach('w')
    await takenOver(run)
    return failure(run.call('/state', 'PUT', { value: 1 }, { 'x-tidebase-worker': run.owner }))
  },
  async 'same-name'() {
    const run = await tide.create('w'), header = { 'x-tidebase-worker': 'ada' }
    await tide.begin(run.id, header)
    return failure(tide.begin(run.id, header))
  },
  async 'begin-held'() {
    const run = await tide.attach('w')
    try { await tide.begin(run.id) } catch (error) { return [error.status, error.body.error, error.body.leaseOwner === run.owner] }
  },
  async 'begin-completed'() { const run = await finished(), begun = await tide.begin(run.id); return [begun.run.status, typeof begun.leaseOwner] },

  async 'gate-timeout'() {
    const run = await tide.attach('w')
    const said = await failure(run.gate('g', { timeoutMs: 20 }))
    const [gate] = (await run.detail()).gates
    return [said, gate.status, (await run.resolve(gate)).status]
  },
  async 'gate-payload'() {
    const run = await tide.attach('w')
    return (await run.resolve(await run.beginGate('g'))).decisionPayload
  },
  async 'gate-answer'() {
    const run = await tide.attach('w')
    const gate = await run.resolve(await run.beginGate('g'), 'approved', { actor: 'ann', payload: { ok: 1 } })
    return [gate.status, gate.decision, gate.actor, gate.decisionPayload, (await run.gate('g')).decision]
  },
  async 'gate-other-prompt'() {
    const run = await tide.attach('w')
    await run.beginGate('g', { prompt: 'Pay 1?' })
    return (await failure(run.beginGate('g', { prompt: 'Pay 1000?' }))) ?? 'the first one'
  },
  async 'gate-twice'() {
    const run = await tide.attach('w'), gate = await run.beginGate('g')
    await run.resolve(gate)
    return (await failure(run.resolve(gate, 'rejected')))[0]
  },
  async 'gate-wrong-token'() {
    const run = await tide.attach('w'), gate = await run.beginGate('g')
    return (await failure(run.resolve({ ...gate, resolveToken: 'gate_0' })))[0]
  },
  async 'gate-of-a-cancelled-run'() {
    const run = await tide.attach('w'), gate = await run.beginGate('g')
    await tide.call(`/runs/${run.id}/cancel`, 'POST', {})
    return [await failure(run.pollGate(gate)), await failure(run.beginGate('h'))]
  },

  async 'webhook-failed'() {
    const run = await tide.attach('w', { recoveryWebhook: `${control}/hook` })
    await run.fail(new Error('no'))
    const [told] = await outside(`dispatch/${run.id}`), body = JSON.parse(told.body)
    return [body.type, body.workflowName, body.reason, body.attempt, body.runId === run.id, isSigned(told.body, told.signature, 'a-webhook-secret')]
  },
  async 'webhook-lapsed'() {
    const run = await tide.attach('w', { recoveryWebhook: `${control}/hook` })
    await outside(`lapse/${run.id}`); await outside('reconcile')
    const [told] = await outside(`dispatch/${run.id}`), body = JSON.parse(told.body)
    return [body.type, body.reason, body.attempt]
  },
  async 'webhook-throttled'() {
    const run = await tide.attach('w', { recoveryWebhook: `${control}/hook` })
    await run.fail(new Error('no'))
    const first = await outside(`waits/${run.id}`)
    await outside(`dispatch/${run.id}`)
    await tide.begin(run.id)
    await run.fail(new Error('no'))
    return [first, await outside(`waits/${run.id}`)]
  },
  async 'recover-answer'() {
    const run = await tide.create('w', { recoveryWebhook: `${control}/hook` })
    const { recoveryAttempt } = await tide.call(`/runs/${run.id}/recover`, 'POST', { reason: 'manual' })
    return [recoveryAttempt.reason, recoveryAttempt.status]
  },
  async 'recover-without-webhook'() {
    const run = await tide.create('w')
    return (await failure(tide.call(`/runs/${run.id}/recover`, 'POST', {})))[0]
  },

  async 'state-stream'() {
    const run = await tide.attach('w')
    await run.set({ a: 1 })
    const { stateStreams: [stream] } = await run.detail()
    return [stream.name, stream.targetType, stream.targetId === run.id]
  },
  async 'state-stream-main'() {
    const run = await tide.attach('w')
    await run.set(1); await run.set(2, { stream: 'main' })
    return [(await run.versions('?stream=run')).map((each) => each.value), (await run.versions('?stream=main')).map((each) => each.value)]
  },
  async 'state-versions'() {
    const run = await tide.attach('w')
    await run.set({ a: 1 }); await run.patch({ b: 2 }); await run.set({ c: 3 })
    return (await run.versions()).map((each) => [each.version, each.patch])
  },
  async 'state-of-a-run'() {
    const run = await tide.attach('w')
    await run.set({ a: 1 }); await run.set({ a: 2 })
    return (await run.detail()).stateVersions.map((each) => each.version)
  },
  async 'state-patch'() {
    const run = await tide.attach('w')
    await run.set({ deep: { x: 1 }, n: 1, kept: true })
    return (await run.patch({ deep: { y: 2 }, n: null })).state.value
  },
  async 'state-patch-of-a-list'() { const run = await tide.attach('w'); await run.set([1]); return (await run.patch({ a: 1 })).state.value },
  async 'state-null'() { const run = await tide.attach('w'); return (await run.set(null)).state.value },
  async 'state-author'() {
    const run = await tide.attach('w')
    await run.set(1); await run.set(2, { createdBy: 'ann' })
    return (await run.versions()).map((each) => each.createdBy)
  },
  async 'state-save'() {
    const run = await tide.attach('w')
    await run.set({ a: 1 })
    const saved = await run.save('here')
    return [saved.version, saved.label, saved.importance, (await run.versions('?labeled=true')).length]
  },
  async 'state-save-nothing'() { return (await failure((await tide.attach('w')).save('here')))[0] },
  async 'state-of-another-stream'() {
    const run = await tide.attach('w')
    await run.set({ main: 1 }); await run.set({ notes: 1 }, { stream: 'notes' })
    return (await run.detail()).state.value
  },
  async 'snapshots'() {
    const run = await tide.attach('w')
    await run.snapshot('one', { state: { n: 1 }, target: { type: 'file', id: 'a.md' } })
    await run.snapshot('two', { state: { n: 2 }, target: { type: 'file', id: 'a.md' } })
    const { snapshots } = await run.call('/snapshots')
    const [stream] = (await run.detail()).stateStreams
    return [snapshots.map((each) => [each.label, each.version, each.createdBy]), stream.name, stream.targetType]
  },

  async 'child-metadata'() {
    const run = await tide.attach('w'), { run: child } = await run.beginChild('c', { metadata: { own: 1 } })
    return [child.metadata.own, child.metadata.parentRunId === run.id, child.metadata.parentEdgeName]
  },
  async 'edge-metadata'() {
    const run = await tide.attach('w'), { edge } = await run.beginChild('c', { edgeType: 'fanout', edgeMetadata: { fanout: 'f' } })
    return [edge.metadata, (await run.detail()).runEdges[0].metadata, edge.edgeType]
  },
  async 'child-again'() {
    const run = await tide.attach('w'), one = await run.beginChild('c'), two = await run.beginChild('c')
    return [one.created, two.created, one.run.id === two.run.id]
  },
  async 'child-other-input'() {
    const run = await tide.attach('w')
    await run.beginChild('c', { input: 1 })
    return (await failure(run.beginChild('c', { input: 2 }))) ?? 'the first one'
  },

  async 'usage-kind'() { return (await (await tide.attach('w')).usage({ quantity: 3, unit: 'images' })).kind },
  async 'usage-total'() {
    const usage = await (await tide.attach('w')).usage({ inputTokens: 3, outputTokens: 4, totalTokens: 10, costUsd: 0.25 })
    return [usage.totalTokens, usage.costUsd]
  },
  async 'usage-total-alone'() { const usage = await (await tide.attach('w')).usage({ totalTokens: 10 }); return [usage.totalTokens, usage.quantity, usage.unit] },

  async 'name-with-slash'() { const run = await tide.create('team/report'); return [run.workflowName, (await tide.get(run.id)).run.workflowName] },
  async 'queue-with-slash'() {
    const enqueue = () => tide.call('/queues/team%2Fmail/enqueue', 'POST', { workflowName: 'w', dedupeKey: 'd' })
    const { run } = await enqueue()
    return [run.queue, run.status, (await enqueue()).deduplicated]
  },

  async 'unsafe-step-again'() {
    const run = await tide.attach('w')
    await failing(run, { sideEffects: ['mail'] })
    return (await failure(run.step('send', { sideEffects: ['mail'] }, () => 1))) ?? 'executed again'
  },
  async 'unsafe-step-session'() {
    const run = await tide.attach('w')
    await failing(run, { sideEffects: ['mail'] })
    await failing(run, { sideEffects: ['mail'] })
    return [await run.step('another', () => 'goes on'), (await run.heartbeat()).run.status]
  },
  async 'unsafe-step-status'() {
    const run = await tide.attach('w')
    const begun = await run.beginStep('send', { sideEffects: ['mail'] })
    const sent = { leaseOwner: begun.leaseOwner, error: {}, retryable: false, resumeDecision: 'manual_review' }
    return (await run.call(`/steps/${begun.step.id}/fail`, 'POST', sent)).step.status
  },
  async 'unsafe-step-crashed'() {
    const run = await tide.attach('w')
    await run.beginStep('send', { sideEffects: ['mail'] })
    run.owner = await takenOver(run)
    return (await failure(run.step('send', { sideEffects: ['mail'] }, () => 1))) ?? 'executed again'
  },
  async 'unsafe-step-auto'() {
    const run = await tide.attach('w'), options = { sideEffects: ['mail'], replay: 'auto' }
    await failing(run, options)
    return (await failure(run.step('send', options, () => 1))) ?? 'executed again'
  },
  async 'unsafe-step-completed'() {
    const run = await tide.attach('w')
    await failing(run, { sideEffects: ['mail'] })
    return (await failure(run.complete(1))) ?? 'completed'
  },
  async 'review-resolved'() {
    const run = await tide.attach('w')
    await failing(run, { sideEffects: ['mail'] })
    const [step] = (await run.detail()).steps
    const said = await failure(run.call(`/steps/${step.id}/resolve`, 'POST', { decision: 'accept', output: 'sent', actor: 'ann' }))
    return said === null ? await run.step('send', { sideEffects: ['mail'] }, () => 'again') : said[0]
  },
  async 'never-again'() {
    const run = await tide.attach('w')
    await failing(run, { replay: 'never' })
    return (await failure(run.step('send', { replay: 'never' }, () => 1))) ?? 'executed again'
  },
  async 'keyed-step-again'() {
    const run = await tide.attach('w'), options = { sideEffects: ['mail'], idempotencyKey: 'k' }
    await failing(run, options)
    return run.step('send', options, () => 'executed again')
  },
  async 'retries'() {
    const run = await tide.attach('w')
    let tries = 0
    const result = await run.step('s', { retries: 2 }, () => { tries += 1; if (tries < 3) throw new Error('no'); return tries })
    return [result, (await run.detail()).steps[0].attempt]
  },
  async 'step-complete-twice'() {
    const run = await tide.attach('w'), begun = await run.beginStep('s')
    const sent = ['POST', { leaseOwner: begun.leaseOwner, output: 1 }]
    await run.call(`/steps/${begun.step.id}/complete`, ...sent)
    return ((await failure(run.call(`/steps/${begun.step.id}/complete`, ...sent))) ?? [200])[0]
  },
  async 'fail-cancelled'() {
    const run = await tide.attach('w')
    await tide.call(`/runs/${run.id}/cancel`, 'POST', { reason: 'enough', actor: 'ann' })
    const failed = await run.fail(new Error('no')), completed = await run.complete(1)
    return [failed.run.status, failed.requeued, completed.run.status, completed.run.cancelReason]
  },
  async 'step-cancelled'() {
    const run = await tide.attach('w')
    await tide.call(`/runs/${run.id}/cancel`, 'POST', {})
    return [await failure(run.step('s', () => 1)), await failure(tide.begin(run.id)), await failure(run.heartbeat())]
  },
  async 'cancel-completed'() { const run = await finished(); return (await failure(tide.call(`/runs/${run.id}/cancel`, 'POST', {})))[0] },
  async 'complete-twice'() { const run = await finished(); return (await failure(run.complete({ r: 2 }))) ?? 'overwritten' },
  async 'complete-unleased'() { const run = await tide.create('w'); return (await failure(tide.call(`/runs/${run.id}/complete`, 'POST', { result: 1 }))) ?? 'completed' },
  async 'state-unleased'() { const run = await tide.create('w'); return (await failure(tide.call(`/runs/${run.id}/state`, 'PUT', { value: 1 }))) ?? 'written' },
  async 'failure-class'() { const run = await tide.attach('w'); return (await run.fail(new Error('no'), { failureClass: 'mine' })).run.failureClass },
  async 'failed-run-again'() {
    const run = await tide.attach('w')
    await run.step('s', () => 1)
    await run.fail(new Error('no'))
    let executed = 0
    const result = await tide.run('w', { runId: run.id }, (again) => again.step('s', () => { executed += 1; return 2 }))
    return [result, executed]
  },
  async 'channels'() { return (await failure(tide.create('w', { channels: [{ type: 'webhook', url: 'https://x.example/hook' }] }))) ?? 'made' },
  async 'grants'() { const run = await tide.create('w'); return (await failure(tide.call(`/runs/${run.id}/grants`, 'POST', {})))[0] },

  async 'unknown-run'() { try { await tide.get('run_none') } catch (error) { return [error.status, error.body.error] } },
  async 'unauthorized'() { try { await strange.get('run_none') } catch (error) { return [error.status, error.body.error] } },
  async 'invalid-body'() {
    try { await tide.create('w', { metadata: 1 }) } catch (error) { return [error.status, error.body.error, Array.isArray(error.body.issues)] }
  },
  async 'heartbeat-of-nobody'() { const run = await tide.attach('w'); return (await failure(run.call('/heartbeat', 'POST', {})))[0] },
  async 'health'() { return (await fetch(`${url}/health`)).json() },
  async 'list'() {
    const run = await tide.create('w')
    return (await tide.call('/runs')).runs[0].id === run.id
  },
}

const seen = {}
for (const [name, look] of Object.entries(cases)) {
  try { seen[name] = (await look()) ?? null } catch (error) { seen[name] = `failed: ${error.stack}` }
}
console.log(JSON.stringify(seen))
process.exit(0)
