// The workflows of the guides, one per feature.
import {
  ActivityCancellationType,
  condition,
  defineQuery,
  defineSignal,
  proxyActivities,
  setHandler,
  sleep,
} from '@temporalio/workflow';
import type * as activities from './activities';

const { greet, flaky } = proxyActivities<typeof activities>({
  startToCloseTimeout: '10s',
  heartbeatTimeout: '5s',
  retry: { initialInterval: '100ms', maximumAttempts: 5 },
});

const { patient } = proxyActivities<typeof activities>({
  startToCloseTimeout: '60s',
  heartbeatTimeout: '5s',
  cancellationType: ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
});

export async function hello(name: string): Promise<string> {
  return await greet(name);
}

export async function retried(): Promise<string> {
  return await flaky();
}

export async function timer(): Promise<string> {
  await sleep('300ms');
  return 'the timer fired';
}

export const approve = defineSignal<[string]>('approve');
export const approvals = defineQuery<string[]>('approvals');

/** Waits for two approvals; who approved can be asked for at any time, also when it is done. */
export async function approval(): Promise<string> {
  const names: string[] = [];
  setHandler(approve, (name) => void names.push(name));
  setHandler(approvals, () => names);
  await condition(() => names.length >= 2);
  return names.join(' and ');
}

export async function cancellable(): Promise<string> {
  return await patient();
}
