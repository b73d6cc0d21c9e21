import { authorized, refusal } from '$api/client';

/** Has the browser keep what an address of the API answers with. */
export async function save(from: string, name: string): Promise<void> {
	const response = await authorized(from);
	if (!response.ok) throw await refusal(response);
	const url = URL.createObjectURL(await response.blob());
	const link = document.createElement('a');
	link.href = url;
	link.download = name;
	link.click();
	URL.revokeObjectURL(url);
}
