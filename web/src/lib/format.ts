const units = ['B', 'KB', 'MB', 'GB', 'TB'] as const;

/** 1536 → "1.5 KB"; in steps of 1024, as the API counts. */
export function bytes(n: number): string {
	let i = 0;
	while (n >= 1024 && i < units.length - 1) {
		n /= 1024;
		i++;
	}
	return `${i === 0 || n >= 100 ? Math.round(n) : Number(n.toFixed(1))} ${units[i]}`;
}

const relative = new Intl.RelativeTimeFormat('en', { numeric: 'auto', style: 'long' });
const steps: readonly [Intl.RelativeTimeFormatUnit, number][] = [
	['year', 31_557_600],
	['month', 2_629_800],
	['week', 604_800],
	['day', 86_400],
	['hour', 3_600],
	['minute', 60]
];

/** "3 minutes ago", "in 2 hours". */
export function ago(at: Date, now: Date): string {
	const seconds = (at.getTime() - now.getTime()) / 1000;
	for (const [unit, size] of steps) {
		if (Math.abs(seconds) >= size) return relative.format(Math.trunc(seconds / size), unit);
	}
	return Math.abs(seconds) < 10 ? 'just now' : relative.format(Math.trunc(seconds), 'second');
}

/** The full time, with its zone. */
export function exact(at: Date): string {
	return new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'long' }).format(at);
}

/** 5400 → "1 h 30 min". */
export function duration(seconds: number): string {
	const parts: string[] = [];
	for (const [size, unit] of [[86_400, 'd'], [3_600, 'h'], [60, 'min'], [1, 's']] as const) {
		const n = Math.floor(seconds / size);
		if (n > 0 && parts.length < 2) parts.push(`${n} ${unit}`);
		seconds -= n * size;
	}
	return parts.join(' ') || '0 s';
}

/** The beginning of an id: enough to tell two apart. */
export function shortId(id: string): string {
	const dash = id.indexOf('-');
	return id.slice(0, dash + 1) + id.slice(-8);
}

/** "lost_contact" → "Lost contact". */
export function words(snake: string): string {
	const text = snake.replaceAll('_', ' ');
	return text.charAt(0).toUpperCase() + text.slice(1);
}

const hidden = /[\p{Cc}\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]/gu;

/** A name as it is, but for what would break lines or turn around what follows: that is spelled out. */
export function visible(name: string): string {
	return name.replace(hidden, (c) => {
		const code = c.codePointAt(0) ?? 0;
		return code < 0x20 ? JSON.stringify(c).slice(1, -1) : `\\u${code.toString(16).padStart(4, '0')}`;
	});
}
