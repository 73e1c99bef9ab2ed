// The activities of the guides: a greeting, one that fails before it succeeds, one that goes on from its heartbeat.
import { activityInfo, cancelled, heartbeat, Context } from '@temporalio/activity';

export async function greet(name: string): Promise<string> {
  return `Hello, ${name}!`;
}

/** Fails twice, having reported how far it came; the third attempt goes on from there. */
export async function flaky(): Promise<string> {
  const info = activityInfo();
  const seen = (info.heartbeatDetails as number | undefined) ?? 0;
  heartbeat(seen + 1);
  if (info.attempt < 3) {
    throw new Error(`attempt ${info.attempt} fails on purpose`);
  }
  return `attempt ${info.attempt} after ${seen} heartbeats`;
}

/** Beats until it is told to stop. */
export async function patient(): Promise<string> {
  const beating = setInterval(() => Context.current().heartbeat(), 200);
  try {
    await cancelled();
  } finally {
    clearInterval(beating);
  }
  return 'never';
}
