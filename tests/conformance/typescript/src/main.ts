// Runs each program of the guides against a server, with Temporal's TypeScript SDK as it comes from npm.
//   node lib/main.js HOST:PORT
// One line of JSON per program: {"program": …, "result": …}; exit code 1 when one went wrong.
import { randomUUID } from 'node:crypto';
import { Client, Connection, WorkflowFailedError, WorkflowHandle } from '@temporalio/client';
import { CancelledFailure } from '@temporalio/common';
import { DefaultLogger, NativeConnection, Runtime, Worker } from '@temporalio/worker';
import * as activities from './activities';
import * as workflows from './workflows';

const taskQueue = `conformance-typescript-${randomUUID()}`;

async function until(what: string, holds: () => Promise<boolean>): Promise<void> {
  const deadline = Date.now() + 20_000;
  while (!(await holds())) {
    if (Date.now() > deadline) throw new Error(`waited 20 s for: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

const programs: Record<string, (client: Client) => Promise<unknown>> = {
  async hello(client) {
    return await client.workflow.execute(workflows.hello, { ...options('hello'), args: ['Everfold'] });
  },
  async retried(client) {
    return await client.workflow.execute(workflows.retried, options('retried'));
  },
  async timer(client) {
    return await client.workflow.execute(workflows.timer, options('timer'));
  },
  async signal(client) {
    const handle = await client.workflow.start(workflows.approval, options('signal'));
    await handle.signal(workflows.approve, 'Ada');
    await handle.signal(workflows.approve, 'Grace');
    return await handle.result();
  },
  async query(client) {
    const handle = await client.workflow.start(workflows.approval, options('query'));
    const before = await handle.query(workflows.approvals);
    await handle.signal(workflows.approve, 'Ada');
    const between = await handle.query(workflows.approvals);
    await handle.signal(workflows.approve, 'Grace');
    await handle.result();
    return [before, between, await handle.query(workflows.approvals)];
  },
  async cancel(client) {
    const handle = await client.workflow.start(workflows.cancellable, options('cancel'));
    await until('the activity runs', async () => activityRuns(await handle.describe()));
    await handle.cancel();
    return await outcome(handle);
  },
};

function options(program: string): { taskQueue: string; workflowId: string } {
  return { taskQueue, workflowId: `${program}-${randomUUID()}` };
}

function activityRuns(description: Awaited<ReturnType<WorkflowHandle['describe']>>): boolean {
  return (description.raw.pendingActivities ?? []).some((pending) => pending.lastHeartbeatTime != null);
}

async function outcome(handle: WorkflowHandle): Promise<string> {
  try {
    return `result ${await handle.result()}`;
  } catch (error) {
    if (error instanceof WorkflowFailedError && error.cause instanceof CancelledFailure) return 'cancelled';
    throw error;
  }
}

async function main(address: string): Promise<void> {
  Runtime.install({ logger: new DefaultLogger('ERROR'), shutdownSignals: [] });
  const connection = await NativeConnection.connect({ address });
  const client = new Client({ connection: await Connection.connect({ address }) });
  const worker = await Worker.create({
    connection,
    taskQueue,
    activities,
    workflowsPath: require.resolve('./workflows'),
  });
  let failed = false;
  await worker.runUntil(async () => {
    for (const [program, run] of Object.entries(programs)) {
      try {
        console.log(JSON.stringify({ program, result: await run(client) }));
      } catch (error) {
        failed = true;
        console.log(JSON.stringify({ program, error: String(error), cause: String((error as Error).cause ?? '') }));
      }
    }
  });
  await connection.close();
  await client.connection.close();
  process.exitCode = failed ? 1 : 0;
}

void main(process.argv[2] ?? '127.0.0.1:7233').catch((error) => {
  console.error(error);
  process.exit(2);
});
